"""What the compiled step says of a run: whether it fits, what it moves, how fast it can be."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from recursia import accounting, chips, settings
from recursia.architecture import Model
from recursia.preflight import collectives, program, roofline, traffic
from recursia.train.step import Trainer

Report = dict[str, Any]


def examine(
    run: settings.Run,
    topology: str,
    devices: Sequence[Any],
    *,
    with_decode: bool = False,
) -> Report:
    """Compiles a run's steps for a topology and returns what `render` prints.

    Steps that differ (a warm-up of capacities) are compiled each: memory is that of the largest,
    time that of the last.

    Returns:
      fits, bytes_per_chip, hbm_bytes_per_chip: whether the step does, and by how much.
      memory: bytes by kind, as `program.Memory`; empty if it does not fit.
      flops_per_step, executed_flops_per_step: of all chips, from `accounting`; the second with
        what is computed again to save memory.
      collectives: `kind`, `bytes`, `executions` per step, and `group_size`, `axes`, `seconds` of
        one, `is_certain`; by the bytes that they send.
      roofline, roofline_seconds_per_step, serial_seconds_per_step, tokens_per_second,
        serial_tokens_per_second, utilisation: see `roofline`; the last is useful FLOPs over peak.
      hours, tokens: of the whole run, at the roofline.
      decode: memory and roofline of drawing a token on one chip, if asked for.

    Raises:
      ConfigError: for a mesh, batch or width that does not divide.
    """
    chip = chips.of_topology(topology)
    made = program.trainer(run, devices)
    report: Report = {
        "topology": topology,
        "chips": len(devices),
        "chip": dataclasses.asdict(chip),
        "mesh": dict(made.mesh.shape),
        "hbm_bytes_per_chip": chip.hbm_bytes,
        **_flops(run, made.model),
    }
    try:
        steps = [program.train_step(made, step) for step in _distinct_steps(made)]
    except program.TooLarge as error:
        return report | _no(error.needed)
    memory = max((step.memory for step in steps), key=lambda each: each.total)
    report |= {
        "memory": dataclasses.asdict(memory),
        "compile_seconds": sum(step.seconds for step in steps),
    }
    if memory.total > chip.hbm_bytes:
        return report | _no(memory.total)
    report |= {"fits": True, "bytes_per_chip": memory.total}
    report |= _times(run, chip, made.mesh, steps[-1], report)
    if with_decode:
        report["decode"] = _decode(run, chip, made)
    return report


def _distinct_steps(made: Trainer) -> list[int]:
    """Returns the first step if it differs from the last, and the last."""
    last = made.run.train.num_steps - 1
    is_one = made.model.at_step(0) == made.model.at_step(last)
    return [last] if is_one else [0, last]


def _flops(run: settings.Run, config: Model) -> Report:
    rows, length = run.train.batch_size, run.train.seq_len
    return {
        "flops_per_step": rows * accounting.training_flops(config, length),
        "executed_flops_per_step": rows
        * accounting.executed_training_flops(config, length, run.train.rematerialisation),
    }


def _no(needed: int) -> Report:
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
    read = traffic.hbm_bytes(step.program)
    found = roofline.roofline(chip, devices, report["executed_flops_per_step"], read, moved)
    tokens = run.train.batch_size * run.train.seq_len
    peak = chip.flops * len(devices)
    return {
        "collectives": [_row(chip, devices, dict(mesh.shape), each) for each in moved],
        "hbm_traffic_bytes": read,
        "roofline": {**dataclasses.asdict(found), "bound": found.bound},
        "roofline_seconds_per_step": found.overlapped,
        "serial_seconds_per_step": found.serial,
        "tokens_per_second": tokens / found.overlapped,
        "serial_tokens_per_second": tokens / found.serial,
        "utilisation": report["flops_per_step"] / found.overlapped / peak,
        "serial_utilisation": report["flops_per_step"] / found.serial / peak,
        "num_steps": run.train.num_steps,
        "tokens": tokens * run.train.num_steps,
        "hours": found.overlapped * run.train.num_steps / 3600,
        "serial_hours": found.serial * run.train.num_steps / 3600,
    }


def _row(
    chip: chips.Chip, devices: list[Any], mesh: dict[str, int], each: collectives.Collective
) -> Report:
    return {
        "kind": each.kind,
        "bytes": each.bytes,
        "executions": each.executions,
        "group_size": each.group_size,
        "axes": each.axes(mesh),
        "sent_bytes": each.sent,
        "seconds": roofline.seconds(chip, devices, each),
        "is_certain": each.is_certain,
        "source": each.source,
    }


def _decode(run: settings.Run, chip: chips.Chip, made: Trainer) -> Report:
    try:
        step = program.decode_step(made)
    except program.TooLarge as error:
        return {"fits": False, "bytes_per_chip": error.needed}
    flops = accounting.forward_flops(made.model, run.train.seq_len)
    read = traffic.hbm_bytes(step.program)
    found = roofline.roofline(chip, [made.mesh.devices.flat[0]], flops, read, [])
    return {
        "fits": step.memory.total <= chip.hbm_bytes,
        "bytes_per_chip": step.memory.total,
        "memory": dataclasses.asdict(step.memory),
        "roofline": {**dataclasses.asdict(found), "bound": found.bound},
        "seconds_per_token": found.overlapped,
    }
