"""Meshes, microbatches and rematerialisation, tried on a topology and ranked."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from recursia import accounting, budget, settings
from recursia.errors import UserError
from recursia.preflight import chips, predict, program, render, report


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run, and what it is predicted to need.

    Attributes:
      run: the settings.
      bytes_per_chip: predicted.
      cost: what it is tried by, the least first: FLOPs executed, then devices that split products,
        then parts of a batch, then devices that hold all parameters.
    """

    run: settings.Run
    bytes_per_chip: int
    cost: tuple[float, ...]


def search(
    run: settings.Run,
    topology: str,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
) -> list[report.Report]:
    """Compiles the most promising ways to run and returns their reports, the fastest first.

    Every legal mesh over data, fsdp and tensor is taken with every number of microbatches that is a
    power of two and every kind of rematerialisation; those predicted to fit are compiled, at most
    `tries` of them.

    Args:
      run: what they change.
      topology: its name.
      devices: of it.
      tries: programs to compile at most.
      say: is told of each one.

    Returns:
      Reports of `report.examine`, each with `overrides`; those that fit first, by tokens per second
      if nothing overlaps.
    """
    chip = chips.CHIPS[topology.partition(":")[0]]
    every = sorted(_candidates(run, devices), key=lambda each: each.cost)
    fitting = [each for each in every if each.bytes_per_chip <= chip.hbm_bytes]
    say(f"{len(every)} ways to run, {len(fitting)} of them predicted to fit")
    fitting = fitting or sorted(every, key=lambda each: each.bytes_per_chip)
    found = []
    for number, each in enumerate(chosen := fitting[:tries], 1):
        typed = predict.overrides(run, each.run)
        made = report.examine(each.run, topology, devices, with_advice=False)
        found.append({**made, "overrides": typed, "predicted_bytes_per_chip": each.bytes_per_chip})
        say(f"{number}/{len(chosen)} {render.in_short(found[-1])}  {typed}")
    speed = lambda each: -each["serial_tokens_per_second"] if each["fits"] else math.inf
    return sorted(found, key=speed)


def _candidates(run: settings.Run, devices: Sequence[Any]) -> Iterator[Candidate]:
    """Every legal way to run."""
    temporaries = functools.cache(functools.partial(_temporaries, run, devices))
    flops = functools.cache(functools.partial(_flops, run))
    for mesh in _meshes(len(devices)):
        sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        whole = predict.change(run, train__num_microbatches=1, **sizes)
        try:
            held = predict.held_bytes(program.trainer(whole, devices))
        except UserError:
            continue
        rows = run.train.batch_size // mesh["data"] // mesh["fsdp"]
        for parts, remat in itertools.product(_powers(rows), predict.REMATS):
            first, each = temporaries(remat, parts > 1, mesh["fsdp"] > 1)
            total = held + (first + rows // parts * each) // mesh["tensor"]
            changed = predict.change(whole, model__remat=remat, train__num_microbatches=parts)
            cost = (flops(remat), mesh["tensor"], parts, mesh["data"])
            yield Candidate(changed, total, cost)


def _flops(run: settings.Run, remat: str) -> int:
    run = predict.change(run, model__remat=remat)
    config = run.model.build(budget.vocab_size(run))
    return accounting.executed_training_flops(config, run.train.seq_len)


def _temporaries(
    run: settings.Run, devices: Sequence[Any], remat: str, is_split: bool, is_sharded: bool
) -> tuple[int, int]:
    """Returns temporary bytes of a device without any row, and of each row, from two traces."""
    found = []
    for rows in (1, 2):
        changed = predict.change(
            run,
            model__remat=remat,
            train__batch_size=rows * len(devices) * (1 + is_split),
            train__num_microbatches=1 + is_split,
            mesh__data=1 if is_sharded else -1,
            mesh__fsdp=-1 if is_sharded else 1,
            mesh__tensor=1,
        )
        found.append(predict.temporary_bytes(program.trainer(changed, devices)))
    return 2 * found[0] - found[1], found[1] - found[0]


def _meshes(count: int) -> Iterator[dict[str, int]]:
    for tensor in _powers(min(count, 8)):
        for fsdp in _powers(count // tensor):
            yield {"data": count // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}


def _powers(count: int) -> list[int]:
    """Returns the powers of two that divide a number."""
    return [1 << i for i in range((count & -count).bit_length())]
