"""Changes of a run until it fits: more rematerialisation, then microbatches, then meshes."""

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

from recursia import batch, budget, changes, jsonfile, model, settings, sharding
from recursia.errors import ConfigError
from recursia.preflight import program, render, report

TRIES = 8  # default number of programs to compile
UNITS = ("none", "block", "recursion")  # of rematerialisation, from the most memory to the least
# Packages and environment variables that a compiled program depends on, besides its text.
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_MAX_WAYS = 8  # shards of heads, of experts, and of a sequence unless the run has more


def climb(
    run: settings.Run,
    topology: str,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
    folder: pathlib.Path | None = None,
) -> list[report.Report]:
    """Compiles a run, and changes of it that need less memory, until one fits.

    More microbatches divide the temporaries at best in proportion. A rung that would not fit even
    then is not compiled.

    Args:
      run: the run to change.
      topology: name of the devices' topology.
      devices: of the topology.
      tries: number of programs to compile at most.
      say: called with a line of progress for each program.
      folder: cache of reports, by the compiled program; None caches nothing.

    Returns:
      Reports of `report.examine` in the order of compilation, each with `overrides`. If a run fits,
      its report is the last.

    Raises:
      ConfigError: if no change of the run is valid on these devices.
    """
    reports: list[report.Report] = []
    last = run
    invalid: ConfigError | None = None
    for changed in rungs(run, len(devices)):
        if len(reports) == tries or (reports and _is_hopeless(changed, last, reports[-1])):
            continue
        try:
            examined = _examined(changed, topology, devices, folder)
        except ConfigError as error:
            invalid = error
            continue
        typed = changes.typed(changes.overrides(run, changed))
        reports.append({**examined, "overrides": typed})
        last = changed
        short = render.in_short(examined)
        say(f"{len(reports)} of at most {tries}: {short}  {typed or 'without changes'}")
        if examined["fits"]:
            break
    if not reports:
        raise ConfigError(f"--search: no mesh of {len(devices)} devices is valid; last: {invalid}")
    return reports


def rungs(run: settings.Run, count: int) -> Iterator[settings.Run]:
    """Yields a run and changes of it that need less memory, the least slowdown first.

    First comes more rematerialisation, then more microbatches with it, then other meshes with one
    row per microbatch and device, those with the fewest tensor and context shards first.
    """
    yield run
    saving = run
    for unit in UNITS[UNITS.index(run.train.remat) + 1 : 2]:
        saving = changes.change(run, train__remat=unit)
        yield saving
    rows = run.train.batch_size // run.train.num_microbatches
    for times in _powers(rows)[1:]:
        num_microbatches = run.train.num_microbatches * times
        yield changes.change(saving, train__num_microbatches=num_microbatches)
    for mesh in sorted(_meshes(run, count), key=_cost):
        sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        ways = math.prod(mesh[axis] for axis in batch.AXES) * max(run.replicas.count, 1)
        if run.train.batch_size % ways == 0:
            num_microbatches = _powers(run.train.batch_size // ways)[-1]
            yield changes.change(saving, train__num_microbatches=num_microbatches, **sizes)


def advice(run: settings.Run, devices: Sequence[Any]) -> list[dict[str, str]]:
    """Returns the next rungs, one for each set of changed fields, as `overrides` to type."""
    by_fields: dict[tuple[str, ...], dict[str, Any]] = {}
    for changed in itertools.islice(rungs(run, len(devices)), 1, None):
        overrides = changes.overrides(run, changed)
        by_fields.setdefault(tuple(overrides), overrides)
    return [{"overrides": changes.typed(each)} for each in list(by_fields.values())[:3]]


def _is_hopeless(run: settings.Run, last: settings.Run, examined: report.Report) -> bool:
    """Returns whether a run with more microbatches than the last, examined one cannot fit."""
    times = run.train.num_microbatches / last.train.num_microbatches
    is_alike = (run.mesh, run.train.remat) == (last.mesh, last.train.remat)
    memory = examined.get("memory")
    if not is_alike or not memory or times <= 1:
        return False
    held = sum(memory.values()) - memory["temporaries"]
    return held + memory["temporaries"] / times > examined["hbm_bytes_per_chip"]


def _examined(
    run: settings.Run, topology: str, devices: Sequence[Any], folder: pathlib.Path | None
) -> report.Report:
    """Returns the report of a run, from the cache if the same program was compiled before."""
    examine = lambda: report.examine(run, topology, devices)
    if folder is None:
        return examine()
    text = program.make_trainer(run, devices).lower(run.train.num_steps - 1).as_text()
    key = repr((text, topology, run.train.num_steps, versions(), *map(os.environ.get, FLAGS)))
    path = folder / f"report-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    try:
        return jsonfile.read(path)
    except (OSError, ValueError):
        examined = examine()
    with contextlib.suppress(OSError):  # it is examined again the next time
        path.write_text(json.dumps(examined))
    return examined


def versions() -> list[str]:
    """Returns the versions of the installed compilers."""
    versions = []
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(name))
    return versions


def _cost(mesh: dict[str, int]) -> tuple[int, ...]:
    """Returns the sort key of a mesh, by the expected slowdown."""
    return mesh["tensor"] * mesh["context"], mesh["tensor"], mesh["expert"], mesh["data"]


def _meshes(run: settings.Run, count: int) -> Iterator[dict[str, int]]:
    """Yields the meshes of `count` devices in which every other axis is a power of two.

    Replicas stay as they are.
    """
    experts = math.gcd(0, *_numbers_of_experts(run)) or 1
    replica = max(run.mesh.replica, 1)
    count = count // replica if count % replica == 0 else 0
    for tensor in _powers(count, _MAX_WAYS):
        for context in _powers(count // tensor, max(_MAX_WAYS, run.mesh.context)):
            for expert in _powers(math.gcd(count // tensor // context, experts), _MAX_WAYS):
                left = count // tensor // context // expert
                for fsdp in _powers(left):
                    sizes = replica, left // fsdp, fsdp, expert, context, tensor
                    yield dict(zip(sharding.AXES, sizes, strict=True))


def _numbers_of_experts(run: settings.Run) -> list[int]:
    """Returns the number of experts of each parameter of a model that has experts."""
    leaves = jax.tree.leaves(model.specs(run.model.sized(budget.vocab_size(run))))
    axes = (zip(spec.axes, spec.shape, strict=True) for spec in leaves)
    return [size for name, size in itertools.chain.from_iterable(axes) if name == "experts"]


def _powers(count: int, most: float = math.inf) -> list[int]:
    """Returns the powers of two that divide a number, up to `most`."""
    powers = [1 << i for i in range((count & -count).bit_length())]
    return [power for power in powers if power <= most]
