"""The report of a compiled run: its memory, its collectives and its roofline."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from recursia import accounting, chips, settings
from recursia.architecture import Model
from recursia.preflight import collectives, program, roofline, traffic
from recursia.sharding import REPLICA
from recursia.train.replicated import ReplicaTrainer
from recursia.train.step import Trainer

Report = dict[str, Any]  # the keys are those of `examine`


def examine(
    run: settings.Run, topology: str, devices: Sequence[Any], *, with_decode: bool = False
) -> Report:
    """Compiles a run's steps for a topology and returns their report.

    If the first step differs from the last (capacities may warm up), both are compiled: the memory
    is the larger one, the time that of the last step.

    Args:
      run: the settings.
      topology: name of the devices' topology.
      devices: of the topology.
      with_decode: whether the step that draws a token is compiled too.

    Returns:
      fits, bytes_per_chip, hbm_bytes_per_chip: whether a step fits, the bytes it needs, and the
        bytes a chip has.
      memory: bytes by kind, as `program.Memory`; missing if the compiler ran out of memory.
      flops_per_step, executed_flops_per_step: of all chips, from `accounting`; the second includes
        rematerialisation.
      collectives: `kind`, `bytes`, `executions` per step, and `group_size`, `axes`, `seconds` of
        one execution, `is_certain`; in the order of the bytes that they send.
      roofline, roofline_seconds_per_step, serial_seconds_per_step, tokens_per_second,
        serial_tokens_per_second, utilisation: see `roofline`; utilisation is the FLOPs without
        rematerialisation over the peak.
      exchanges: of each fragment of a run with replicas, `sent_bytes` of a device and `seconds`,
        once in `every_steps` steps, besides the collectives of a step.
      hours, tokens: of all training steps, at the roofline.
      decode: memory and roofline of drawing one token on one chip.

    Raises:
      ConfigError: if the mesh does not divide the batch or a width.
    """
    chip = chips.of_topology(topology)
    trainer = program.make_trainer(run, devices)
    report: Report = {
        "topology": topology,
        "chips": len(devices),
        "chip": dataclasses.asdict(chip),
        "mesh": dict(trainer.mesh.shape),
        "hbm_bytes_per_chip": chip.hbm_bytes,
        **_flops(run, trainer.model),
    }
    try:
        steps = [program.train_step(trainer, step) for step in _distinct_steps(trainer)]
    except program.TooLarge as error:
        return report | _too_large(error.needed)
    memory = max((step.memory for step in steps), key=lambda memory: memory.total)
    report |= {
        "memory": dataclasses.asdict(memory),
        "compile_seconds": sum(step.seconds for step in steps),
    }
    if memory.total > chip.hbm_bytes:
        return report | _too_large(memory.total)
    report |= {"fits": True, "bytes_per_chip": memory.total}
    report |= _times(run, chip, trainer.mesh, steps[-1], report)
    if isinstance(trainer, ReplicaTrainer):
        report["exchanges"] = _exchanges(chip, trainer)
    if with_decode:
        report["decode"] = _decode(run, chip, trainer)
    return report


def _distinct_steps(trainer: Trainer) -> list[int]:
    """Returns the last step, and before it the first if its program differs.

    Where a step may exchange a fragment, the last is one that exchanges nothing, and before it is
    one that exchanges the largest fragment.
    """
    last = trainer.run.train.num_steps - 1
    first = [] if trainer.model_at(0) == trainer.model_at(last) else [0]
    how = trainer.run.replicas
    if not isinstance(trainer, ReplicaTrainer) or not how.delay:
        return [*first, last]
    steps = range(last, last - 2 * how.every_steps, -1)
    wire = trainer.exchanges.wire_bytes
    largest = max(range(how.num_fragments), key=wire)
    quiet = next((step for step in steps if how.arriving(step + 1) is None), last)
    return [*first, how.offset(largest) + how.delay - 1, quiet]


def _flops(run: settings.Run, config: Model) -> Report:
    rows, length = run.train.batch_size, run.train.seq_len
    return {
        "flops_per_step": rows * accounting.training_flops(config, length),
        "executed_flops_per_step": rows
        * accounting.executed_training_flops(config, length, run.train.rematerialisation),
    }


def _exchanges(chip: chips.Chip, trainer: ReplicaTrainer) -> list[Report]:
    """Returns the all-gather of each fragment, besides the collectives of a step."""
    devices, made = list(trainer.mesh.devices.flat), trainer.exchanges
    grid = np.arange(len(devices)).reshape(trainer.mesh.shape[REPLICA], -1).T
    groups = tuple(tuple(row) for row in grid.tolist())
    rows = []
    for number in range(len(made.fragments)):
        size = made.how.count * made.wire_bytes(number)
        moved = collectives.Collective("all-gather", size, groups, 1)
        rows.append(
            {
                "fragment": number,
                "every_steps": made.how.every_steps,
                "sent_bytes": moved.sent,
                "seconds": roofline.seconds(chip, devices, moved),
            }
        )
    return rows


def _too_large(needed: int) -> Report:
    return {
        "fits": False,
        "bytes_per_chip": needed,
        "collectives": [],
        "roofline_seconds_per_step": None,
        "tokens_per_second": None,
    }


def _times(
    run: settings.Run, chip: chips.Chip, mesh: Any, step: program.Compiled, report: Report
) -> Report:
    devices, moved = list(mesh.devices.flat), collectives.collectives(step.program)
    hbm_bytes = traffic.hbm_bytes(step.program)
    line = roofline.roofline(chip, devices, report["executed_flops_per_step"], hbm_bytes, moved)
    tokens = run.train.batch_size * run.train.seq_len
    peak = chip.flops * len(devices)
    return {
        "collectives": [_row(chip, devices, dict(mesh.shape), each) for each in moved],
        "hbm_traffic_bytes": hbm_bytes,
        "roofline": {**dataclasses.asdict(line), "bound": line.bound},
        "roofline_seconds_per_step": line.overlapped,
        "serial_seconds_per_step": line.serial,
        "tokens_per_second": tokens / line.overlapped,
        "serial_tokens_per_second": tokens / line.serial,
        "utilisation": report["flops_per_step"] / line.overlapped / peak,
        "serial_utilisation": report["flops_per_step"] / line.serial / peak,
        "num_steps": run.train.num_steps,
        "tokens": tokens * run.train.num_steps,
        "hours": line.overlapped * run.train.num_steps / 3600,
        "serial_hours": line.serial * run.train.num_steps / 3600,
    }


def _row(
    chip: chips.Chip, devices: list[Any], mesh: dict[str, int], moved: collectives.Collective
) -> Report:
    return {
        "kind": moved.kind,
        "bytes": moved.bytes,
        "executions": moved.executions,
        "group_size": moved.group_size,
        "axes": moved.axes(mesh),
        "sent_bytes": moved.sent,
        "seconds": roofline.seconds(chip, devices, moved),
        "is_certain": moved.is_certain,
        "source": moved.source,
    }


def _decode(run: settings.Run, chip: chips.Chip, trainer: Trainer) -> Report:
    try:
        step = program.decode_step(trainer)
    except program.TooLarge as error:
        return {"fits": False, "bytes_per_chip": error.needed}
    flops = accounting.forward_flops(trainer.model, run.train.seq_len)
    hbm_bytes = traffic.hbm_bytes(step.program)
    line = roofline.roofline(chip, [trainer.mesh.devices.flat[0]], flops, hbm_bytes, [])
    return {
        "fits": step.memory.total <= chip.hbm_bytes,
        "bytes_per_chip": step.memory.total,
        "memory": dataclasses.asdict(step.memory),
        "roofline": {**dataclasses.asdict(line), "bound": line.bound},
        "seconds_per_token": line.overlapped,
    }
