"""What to change about a run until it fits: rematerialisation, then microbatches, then meshes."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from recursia import batch, budget, changes, model, settings, sharding
from recursia.errors import ConfigError
from recursia.preflight import program, render, report

TRIES = 8  # programs to compile, unless told
UNITS = ("none", "block", "recursion")  # of rematerialisation, the larger the less is kept
# What a compiled program depends on besides its text.
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_MOST = 8  # devices that split heads, a sequence (unless told more) or experts


def climb(
    run: settings.Run,
    topology: str,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
    folder: pathlib.Path | None = None,
) -> list[report.Report]:
    """Compiles a run, and ways to run it that need less memory, until one fits.

    A rung is left out where half of the temporaries for twice the microbatches, which is the best
    that can be, would not do.

    Args:
      run: what is changed.
      topology: its name.
      devices: of it.
      tries: programs to compile at most.
      say: is told of each one.
      folder: where reports are kept by the program that was compiled, and read; None keeps none.

    Returns:
      Reports of `report.examine` in the order in which they were made, each with `overrides`; where
      one fits it is the last.

    Raises:
      ConfigError: if no way to run on these devices is legal.
    """
    found: list[report.Report] = []
    last = run
    refused: ConfigError | None = None
    for each in rungs(run, len(devices)):
        if len(found) == tries or (found and _is_hopeless(each, last, found[-1])):
            continue
        try:
            made = _examined(each, topology, devices, folder)
        except ConfigError as error:
            refused = error
            continue
        typed = changes.typed(changes.overrides(run, each))
        found.append({**made, "overrides": typed})
        last = each
        say(f"{len(found)} of at most {tries}: {render.in_short(made)}  {typed or 'as it is'}")
        if made["fits"]:
            break
    if not found:
        raise ConfigError(f"--search: no mesh of {len(devices)} devices is legal; last: {refused}")
    return found


def rungs(run: settings.Run, count: int) -> Iterator[settings.Run]:
    """Yields a run and changes of it that need less memory, in the order of what they cost.

    First more rematerialisation, then more microbatches with it, then other meshes with as many
    microbatches as there are rows: those with few devices that split products first.
    """
    yield run
    saved = run
    for unit in UNITS[UNITS.index(run.train.remat) + 1 : 2]:
        saved = changes.change(run, train__remat=unit)
        yield saved
    rows = run.train.batch_size // run.train.num_microbatches
    for times in _powers(rows)[1:]:
        parts = run.train.num_microbatches * times
        yield changes.change(saved, train__num_microbatches=parts)
    for mesh in sorted(_meshes(run, count), key=_cost):
        sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        ways = math.prod(mesh[axis] for axis in batch.AXES)
        if run.train.batch_size % ways == 0:
            parts = _powers(run.train.batch_size // ways)[-1]
            yield changes.change(saved, train__num_microbatches=parts, **sizes)


def advice(run: settings.Run, devices: Sequence[Any]) -> list[dict[str, str]]:
    """Returns the next rungs, one of each kind, as `overrides` to type."""
    kinds: dict[tuple[str, ...], settings.Run] = {}
    for each in itertools.islice(rungs(run, len(devices)), 1, None):
        kinds.setdefault(tuple(changes.overrides(run, each)), each)
    every = [changes.typed(changes.overrides(run, each)) for each in kinds.values()]
    return [{"overrides": typed} for typed in every[:3]]


def _is_hopeless(run: settings.Run, last: settings.Run, made: report.Report) -> bool:
    """Returns whether more microbatches alone cannot do, as the report of the last run shows."""
    times = run.train.num_microbatches / last.train.num_microbatches
    is_alike = (run.mesh, run.train.remat) == (last.mesh, last.train.remat)
    memory = made.get("memory")
    if not is_alike or not memory or times <= 1:
        return False
    held = sum(memory.values()) - memory["temporaries"]
    return held + memory["temporaries"] / times > made["hbm_bytes_per_chip"]


def _examined(
    run: settings.Run, topology: str, devices: Sequence[Any], folder: pathlib.Path | None
) -> report.Report:
    """Returns the report of a run, read if the same program was compiled before."""
    examine = lambda: report.examine(run, topology, devices)
    if folder is None:
        return examine()
    text = program.trainer(run, devices).lower(run.train.num_steps - 1).as_text()
    what = repr((text, topology, run.train.num_steps, _versions(), *map(os.environ.get, _FLAGS)))
    path = folder / f"report-{hashlib.sha256(what.encode()).hexdigest()[:24]}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        made = examine()
    path.write_text(json.dumps(made))
    return made


def _versions() -> list[str]:
    """Returns the versions of the compilers that are installed."""
    found = []
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(importlib.metadata.version(name))
    return found


def _cost(mesh: dict[str, int]) -> tuple[int, ...]:
    """Returns what a mesh is tried by, the least first."""
    return mesh["tensor"] * mesh["context"], mesh["tensor"], mesh["expert"], mesh["data"]


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
