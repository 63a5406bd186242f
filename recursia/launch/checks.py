"""What is checked before a job is submitted, besides what its target checks."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jax.sharding import AbstractMesh

from recursia import compiled, config, console, settings, sharding, topology
from recursia.buckets import PREFIXES
from recursia.errors import ConfigError, UserError
from recursia.launch.machines import Machines
from recursia.preflight import kept, render, report

_SECTIONS = ("data", "train", "distill")  # that name files and folders


def check_mesh(run: settings.Run, machines: Machines) -> None:
    """Checks that mesh and batch divide over the machines' chips.

    Raises:
      ConfigError: if they do not.
    """
    shape = sharding.mesh_shape(run.mesh, machines.hosts * machines.per_host)
    mesh = AbstractMesh(shape, sharding.AXES)
    rows = run.train.batch_size // run.train.num_microbatches
    sharding.check_batch(rows, run.train.seq_len, mesh, run.replicas.count)


def check_places(run: settings.Run, target: str, shared: tuple[str, ...], **given: str) -> None:
    """Checks that all hosts see the files and folders of a run.

    Args:
      run: its settings.
      target: name of the target.
      shared: folders that all hosts see.
      **given: other places by the option that names them; "" is no place.

    Raises:
      ConfigError: for a place that is neither in a bucket nor in such a folder.
    """
    named = {f"--config.{field}": place for field, place in _places(run)}
    for option, place in {**{f"--{name}": place for name, place in given.items()}, **named}.items():
        if place and not place.startswith(PREFIXES) and not _is_below(place, shared):
            raise ConfigError(
                f"{option}={place}: the hosts of {target} see no folder of this machine; give a "
                f"place in a bucket ({', '.join(PREFIXES)}), or name a folder above it that all "
                "of them see as --shared=DIR"
            )


def _is_below(place: str, folders: tuple[str, ...]) -> bool:
    path = pathlib.PurePath(os.path.abspath(place))
    return any(path.is_relative_to(folder) for folder in folders)


def _places(run: settings.Run) -> Iterator[tuple[str, str]]:
    """Yields the files and folders of this machine that a run names, by field."""

    def walk(value: Any, field: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, each in value.items():
                yield from walk(each, f"{field}.{name}")
        elif isinstance(value, list | tuple):
            for each in value:
                yield from walk(each, field)
        elif isinstance(value, str) and os.path.isabs(value):
            yield field, value

    for section, values in config.to_dict(run).items():
        if section in _SECTIONS:
            yield from walk(values, section)


def check_fit(run: settings.Run, name: str, machines: Machines, *, may_compile: bool) -> None:
    """Checks that a step fits the memory of the chips, by a report that is kept, or made.

    Args:
      run: the settings.
      name: of the configuration.
      machines: the hosts.
      may_compile: whether a report is made if none is kept, which takes minutes.

    Raises:
      ConfigError: if the compiler is not installed.
      UserError: if a step does not fit, with exit code 1.
    """
    where, on = compiled.where(), machines.topology
    found = kept.read(run, on, where)
    if found is None and not may_compile:
        console.say(f"launch: not compiled for {on} yet; a launch without --dry_run does so first")
        return
    if found is None:
        found = _compile(run, name, on)
        kept.write(found, run, on, where)
    if not found["fits"]:
        error = UserError(
            f"{name} on {on}: {render.in_short(found)}; recursia compile --search finds changes, "
            "or give --no_preflight"
        )
        error.exit_code = 1
        raise error
    console.say(f"launch: {name} on {on} {render.in_short(found)}")


def _compile(run: settings.Run, name: str, on: str) -> report.Report:
    import jax

    jax.config.update("jax_platforms", "cpu")  # the machine meant is not this one
    try:
        devices = topology.devices(on)
    except ConfigError as error:
        raise ConfigError(f"{error}; or give --no_preflight") from None
    with console.doing(f"compiling {name} for {on}"):
        return report.examine(run, on, devices)
