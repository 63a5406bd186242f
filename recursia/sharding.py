"""The mesh, and the one place where logical axis names become mesh axes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia.errors import ConfigError
from recursia.params import Spec

AXES = ("data", "fsdp")
Rules = tuple[tuple[str, tuple[str, ...]], ...]  # logical axis -> mesh axes that split it


@dataclasses.dataclass(frozen=True)
class Config:
    """How devices are laid out.

    Attributes:
      data: devices along which only the batch is split; -1 takes all that are left.
      fsdp: devices along which batch and parameters are split; -1 takes all that are left.
      rules: mesh axes that split each logical axis; one not named is not split.
    """

    data: int = -1
    fsdp: int = 1
    rules: Rules = (("batch", ("data", "fsdp")), ("embed", ("fsdp",)))

    def __post_init__(self):
        sizes = (self.data, self.fsdp)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"data, fsdp: got {sizes}, takes numbers from 1, one of them -1")
        for name, axes in self.rules:
            if unknown := set(axes) - set(AXES):
                raise ValueError(f"rules.{name}: no mesh axis {min(unknown)!r}; there is {AXES}")
        if dict(self.rules).get("batch") != AXES:
            raise ValueError(
                f"rules.batch: got {dict(self.rules).get('batch')}, takes {AXES}: activations are "
                "split over all devices"
            )


def make_mesh(config: Config, devices: list[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over `devices` (None: all there are).

    Raises:
      ConfigError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: len(devices) // known if s == -1 else s for axis, s in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(
            f"config.mesh: data {config.data} x fsdp {config.fsdp} does not make {len(devices)} "
            "devices; let one of them be -1"
        )
    grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(rows: int, mesh: Mesh, config: Config) -> None:
    """Checks that the rows computed at a time divide over the devices that split them.

    Raises:
      ConfigError: if they do not.
    """
    ways = math.prod(mesh.shape[axis] for axis in dict(config.rules).get("batch", ()))
    if rows % ways:
        raise ConfigError(
            f"config.train.batch_size: {rows} sequences at a time do not divide over {ways} "
            "devices; change batch_size, num_microbatches or config.mesh"
        )


def partition(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Returns how an array with these logical axes is split."""
    return PartitionSpec(*(dict(rules).get(axis) if axis else None for axis in axes))


def shardings(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the sharding of every parameter.

    Raises:
      ConfigError: if a parameter's axis does not divide over the devices that split it.
    """

    def place(path: tuple[Any, ...], spec: Spec) -> NamedSharding:
        for size, name in zip(spec.shape, spec.axes, strict=True):
            ways = math.prod(mesh.shape[axis] for axis in dict(rules).get(name, ()))
            if size % ways:
                raise ConfigError(
                    f"config.mesh: {name} of {jax.tree_util.keystr(path)} is {size} wide, which "
                    f"{ways} devices do not divide; change config.mesh or the width"
                )
        return NamedSharding(mesh, partition(spec.axes, rules))

    return jax.tree_util.tree_map_with_path(place, specs)


def constrain(x: Array, axes: tuple[str | None, ...], rules: Rules = Config().rules) -> Array:
    """Asks the compiler to split activations so; does nothing outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, rules))
