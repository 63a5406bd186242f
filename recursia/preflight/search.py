"""Meshes, microbatches and rematerialisation, tried on a topology and ranked."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from recursia import accounting, batch, budget, model, settings, sharding
from recursia.errors import ConfigError
from recursia.preflight import chips, predict, program, render, report

TRIES = 6  # programs to compile, unless told
_MOST = 8  # devices that split heads, a sequence (unless told more) or experts


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run.

    Attributes:
      run: the settings.
      held_bytes: of the state and the batch, on one device.
      cost: what it is tried by, the least first: FLOPs executed, then devices that split products,
        then parts of a batch, then devices that split experts, then those that hold all parameters.
    """

    run: settings.Run
    held_bytes: int
    cost: tuple[float, ...]


def search(
    run: settings.Run,
    topology: str,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
) -> list[report.Report]:
    """Compiles the most promising ways to run and returns their reports, the fastest first.

    Every legal mesh by powers of two is taken with every number of microbatches that is one and
    every kind of rematerialisation. Those predicted to fit are compiled, at most `tries`, and at
    most two of those that differ in data and fsdp alone.

    Args:
      run: what they change.
      topology: its name.
      devices: of it.
      tries: programs to compile at most.
      say: is told of each one.

    Returns:
      Reports of `report.examine`, each with `overrides`; those that fit first, by tokens per second
      if nothing overlaps.

    Raises:
      ConfigError: if no mesh of these devices is legal.
    """
    chip = chips.CHIPS[topology.partition(":")[0]]
    every = sorted(_candidates(run, devices), key=lambda each: each.cost)
    predicted, fitting = [], []
    for each, size in _sized(devices, every):
        predicted.append((size, each))
        alike = sum(other.cost[:-1] == each.cost[:-1] for _, other in fitting)
        if size <= chip.hbm_bytes and alike < 2:
            fitting.append((size, each))
        if len(fitting) == tries:
            break
    say(f"{len(every)} ways to run, {len(fitting)} of the first {len(predicted)} to be compiled")
    fitting = fitting or sorted(predicted, key=lambda each: each[0])[:tries]
    found = []
    for number, (size, each) in enumerate(fitting, 1):
        typed = predict.overrides(run, each.run)
        made = report.examine(each.run, topology, devices, with_advice=False)
        found.append({**made, "overrides": typed, "predicted_bytes_per_chip": size})
        say(f"{number}/{len(fitting)} {render.in_short(found[-1])}  {typed}")
    speed = lambda each: -each["serial_tokens_per_second"] if each["fits"] else math.inf
    return sorted(found, key=speed)


def _candidates(run: settings.Run, devices: Sequence[Any]) -> list[Candidate]:
    """Returns every legal way to run."""
    flops, found, refused = functools.cache(functools.partial(_flops, run)), [], None
    for mesh in _meshes(run, len(devices)):
        sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        whole = predict.change(run, train__num_microbatches=1, **sizes)
        try:
            held = predict.held_bytes(program.trainer(whole, devices))
        except ConfigError as error:
            refused = error
            continue
        for parts, remat in itertools.product(_powers(_rows(whole)), predict.REMATS):
            changed = predict.change(whole, train__remat=remat, train__num_microbatches=parts)
            split = mesh["tensor"] * mesh["context"], mesh["tensor"]
            cost = (flops(remat), *split, parts, mesh["expert"], mesh["data"])
            found.append(Candidate(changed, held, cost))
    if not found:
        raise ConfigError(
            f"--search: no mesh of {len(devices)} devices is legal; the last: {refused}"
        )
    return found


def _rows(run: settings.Run) -> int:
    """Returns the sequences of a batch on one device."""
    return run.train.batch_size // math.prod(getattr(run.mesh, axis) for axis in batch.AXES)


def _flops(run: settings.Run, remat: str) -> int:
    run = predict.change(run, train__remat=remat)
    config = run.model.sized(budget.vocab_size(run))
    return accounting.executed_training_flops(
        config, run.train.seq_len, run.train.rematerialisation
    )


def _sized(devices: Sequence[Any], candidates: list[Candidate]) -> Iterator[tuple[Candidate, int]]:
    """Yields each candidate with the bytes of a device that it is predicted to need."""
    temporaries: dict[tuple[Any, ...], tuple[int, int]] = {}
    for each in candidates:
        mesh, parts = each.run.mesh, each.run.train.num_microbatches
        alike = each.run.train.remat, parts > 1, mesh.fsdp > 1, mesh.context, mesh.expert
        if alike not in temporaries:
            temporaries[alike] = _temporaries(each.run, devices)
        first, row = temporaries[alike]
        yield each, each.held_bytes + (first + _rows(each.run) // parts * row) // mesh.tensor


def _temporaries(run: settings.Run, devices: Sequence[Any]) -> tuple[int, int]:
    """Returns temporary bytes of a device without any row, and of each row, nothing over tensor."""
    parts = min(2, run.train.num_microbatches)
    changed = predict.change(
        run,
        train__batch_size=len(devices) // run.mesh.context * parts,
        train__num_microbatches=parts,
        mesh__data=-1,
        mesh__tensor=1,
    )
    return predict.temporary_parts(program.trainer(changed, devices))


def _meshes(run: settings.Run, count: int) -> Iterator[dict[str, int]]:
    """Yields meshes of so many devices; few devices each split heads, sequences and experts."""
    experts = math.gcd(0, *_numbers_of_experts(run)) or 1
    for tensor in _powers(count, _MOST):
        for context in _powers(count // tensor, max(_MOST, run.mesh.context)):
            for expert in _powers(math.gcd(count // tensor // context, experts), _MOST):
                left = count // tensor // context // expert
                for fsdp in _powers(left):
                    sizes = left // fsdp, fsdp, expert, context, tensor
                    yield dict(zip(sharding.AXES, sizes, strict=True))


def _numbers_of_experts(run: settings.Run) -> list[int]:
    """Returns how many experts the banks of a model have."""
    leaves = jax.tree.leaves(model.specs(run.model.sized(budget.vocab_size(run))))
    axes = (zip(spec.axes, spec.shape, strict=True) for spec in leaves)
    return [size for name, size in itertools.chain.from_iterable(axes) if name == "experts"]


def _powers(count: int, most: float = math.inf) -> list[int]:
    """Returns the powers of two that divide a number."""
    every = [1 << i for i in range((count & -count).bit_length())]
    return [power for power in every if power <= most]
