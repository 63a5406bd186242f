"""The device mesh, and the rules by which logical axis names are sharded over mesh axes.

Devices along "replica", "data", "fsdp" and "expert" hold different rows of a batch; those along
"replica" train replicas of the parameters (`recursia.replicas`), "fsdp" also shards parameters,
"expert" the banks of experts, "tensor" heads, hidden widths and vocabulary, "context" the tokens of
a row. A training step is a `shard_map` over the axes of rows; parameters that "fsdp"
shards are gathered inside it (`recursia.fsdp`). Over "tensor" and "context" the compiler partitions
the program, and `locally` runs what it cannot partition, such as kernels.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia import batch, ranges
from recursia.errors import ConfigError
from recursia.params import Spec

REPLICA = "replica"
# The devices of the last axes communicate most: they are neighbours.
AXES = (REPLICA, "data", "fsdp", "expert", "context", "tensor")
Rules = tuple[tuple[str, tuple[str, ...]], ...]  # logical axis -> mesh axes that split it
RULES: Rules = (
    ("batch", batch.AXES),
    ("length", ("context",)),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("experts", ("expert",)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis; one may be -1 for all remaining devices.

    Attributes:
      data: shards the batch alone (data parallelism).
      fsdp: shards batch and parameters (fully sharded data parallelism).
      tensor: shards heads, hidden widths and vocabulary (tensor parallelism).
      context: shards the tokens of a sequence (context parallelism).
      expert: shards batch and banks of experts (expert parallelism).
      replica: shards the replicas of `replicas.count`, which it must divide.
      rules: mesh axes that shard each logical axis, where they differ from `RULES`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    rules: Rules = ()
    replica: int = 1

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple({**dict(RULES), **dict(self.rules)}.items()))
        for axis, size in self.sizes.items():
            if not (size == -1 or 1 <= size <= ranges.LARGEST):
                raise ValueError(f"{axis}: got {size}, takes a number from 1, or -1 for all left")
        if len(left := [axis for axis, size in self.sizes.items() if size == -1]) > 1:
            raise ValueError(
                f"{left[1]}: got -1, and so has {left[0]}; all devices left go along one axis"
            )
        for name, axes in self.rules:
            if unknown := set(axes) - set(AXES[1:]):
                raise ValueError(
                    f"rules.{name}: no mesh axis {min(unknown)!r}; there is {AXES[1:]}"
                )
            if "expert" in axes and name not in ("batch", "experts"):
                raise ValueError(
                    f"rules.{name}: got {axes}, and 'expert' splits batch and experts alone"
                )
        for name in ("batch", "length"):
            if (got := dict(self.rules).get(name)) != dict(RULES)[name]:
                raise ValueError(
                    f"rules.{name}: got {got}, takes {dict(RULES)[name]}: activations are split "
                    "over all devices"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis."""
        return {axis: getattr(self, axis) for axis in AXES}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over `devices`; None takes all.

    Raises:
      ConfigError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    grid = np.array(devices).reshape(mesh_shape(config, len(devices)))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, ...]:
    """Returns the size of each mesh axis on a number of devices.

    Raises:
      ConfigError: if the axes do not multiply to that number.
    """
    known = math.prod(size for size in config.sizes.values() if size != -1)
    sizes = tuple(count // known if size == -1 else size for size in config.sizes.values())
    if math.prod(sizes) != count:
        given = " x ".join(f"{axis} {size}" for axis, size in config.sizes.items())
        raise ConfigError(
            f"config.mesh: {given} does not make {count} devices; let one of them be -1"
        )
    return sizes


def check_batch(rows: int, seq_len: int, mesh: Mesh | AbstractMesh, num_replicas: int = 0) -> None:
    """Checks that the rows of a microbatch, and their tokens, divide over the devices.

    Args:
      rows: of a microbatch, over all replicas.
      seq_len: tokens of a row.
      mesh: the devices.
      num_replicas: replicas of the parameters, each of which has as many rows; 0 without any.

    Raises:
      ConfigError: if they do not, or if the replicas do not.
    """
    if (num_replicas or 1) % (size := mesh.shape[REPLICA]):
        raise ConfigError(
            f"config.mesh.replica: {size} do not divide the {num_replicas} of "
            "config.replicas.count; change one of them"
        )
    num_shards = _num_shards(batch.AXES, mesh)
    if num_replicas and rows % (num_replicas * num_shards):
        raise ConfigError(
            f"config.train.batch_size: {rows} sequences at a time do not divide over "
            f"{num_replicas} replicas of {num_shards} devices; change batch_size, "
            "num_microbatches, replicas.count or config.mesh"
        )
    if rows % num_shards:
        raise ConfigError(
            f"config.train.batch_size: {rows} sequences at a time do not divide over {num_shards} "
            "devices; change batch_size, num_microbatches or config.mesh"
        )
    if seq_len % mesh.shape["context"]:
        raise ConfigError(
            f"config.train.seq_len: {seq_len} tokens do not divide over mesh.context "
            f"{mesh.shape['context']}; change one of them"
        )


def splitting(name: str | None, rules: Rules) -> tuple[str, ...]:
    """Returns the mesh axes that shard a logical axis; none shard one without a name.

    Replicas split the rows of a batch before the devices of each do.
    """
    axes = () if name is None else dict(rules).get(name, ())
    return (REPLICA, *axes) if name == "batch" else axes


def _num_shards(axes: Sequence[str], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def partition(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Returns the partition of an array with these logical axes."""
    return PartitionSpec(*(splitting(axis, rules) or None for axis in axes))


def shardings(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the sharding of every parameter.

    Raises:
      ConfigError: if a parameter's axis does not divide over the devices that split it.
    """

    def place(path: tuple[Any, ...], spec: Spec) -> NamedSharding:
        for size, name in zip(spec.shape, spec.axes, strict=True):
            num_shards = _num_shards(splitting(name, rules), mesh)
            if size % num_shards:
                remedy = "the width"
                if name == "vocab":
                    remedy = (
                        f"set config.model.vocab_size={math.ceil(size / num_shards) * num_shards}"
                    )
                raise ConfigError(
                    f"config.mesh: {name} of {jax.tree_util.keystr(path)} is {size} wide, which "
                    f"{num_shards} devices do not divide; change config.mesh or {remedy}"
                )
        return NamedSharding(mesh, partition(spec.axes, rules))

    return jax.tree_util.tree_map_with_path(place, specs)


def fitting(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the sharding of every parameter on any mesh: of what `fitted` returns."""
    return shardings(fitted(specs, mesh, rules), mesh, rules)


def fitted(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns specs in which axes that the devices do not divide have no name: they stay whole."""

    def fit(spec: Spec) -> Spec:
        divides = lambda size, name: size % _num_shards(splitting(name, rules), mesh) == 0
        pairs = zip(spec.shape, spec.axes, strict=True)
        axes = tuple(name if divides(size, name) else None for size, name in pairs)
        return dataclasses.replace(spec, axes=axes)

    return jax.tree.map(fit, specs)


def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Constrains the sharding of activations over the mesh axes that the compiler partitions."""
    free = _compiler_axes()
    spec = [tuple(axis for axis in splitting(name, RULES) if axis in free) or None for name in axes]
    if not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _compiler_axes() -> tuple[str, ...]:
    """Returns the mesh axes of several devices over which the compiler partitions the program."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(a for a in mesh.axis_names if a not in mesh.manual_axes and mesh.shape[a] > 1)


def ways(name: str) -> int:
    """Returns the number of shards that the compiler may make of a logical axis."""
    mesh, free = jax.sharding.get_abstract_mesh(), _compiler_axes()
    return _num_shards([axis for axis in splitting(name, RULES) if axis in free], mesh)


def is_split(name: str, parts: int | None = None, is_local: bool = False) -> bool:
    """Returns whether a logical axis is sharded.

    Args:
      name: of the logical axis.
      parts: if given, into how many equal parts the axis falls, and the result is True only if
        every device holds whole parts.
      is_local: whether the call is inside `locally`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = mesh.manual_axes if is_local and not mesh.empty else _compiler_axes()
    num_shards = _num_shards([axis for axis in splitting(name, RULES) if axis in free], mesh)
    return num_shards > 1 and (parts is None or parts % num_shards == 0)


def locally(
    f: Callable[..., Any],
    arrays: tuple[Array | None, ...],
    names: tuple[tuple[str | None, ...], ...],
    out: tuple[str | None, ...],
    summed: str | None = None,
) -> Any:
    """Runs `f` on each device's shards of arrays: for kernels, which no compiler can partition.

    Args:
      f: from arrays to an array, or a tree of arrays with the same first axes.
      arrays: arguments of `f`; None stays None.
      names: logical axes of each argument. An axis is sharded if its devices divide every axis of
        that name, and replicated otherwise.
      out: logical axes of the result; further axes are not sharded.
      summed: a logical axis that `f` contracts: where it is sharded, results are summed.
    """
    free, mesh = _compiler_axes(), jax.sharding.get_abstract_mesh()
    if not free:
        return f(*arrays)

    @functools.cache
    def split(name: str | None) -> tuple[str, ...]:
        axes = tuple(axis for axis in splitting(name, RULES) if axis in free)
        named = ((x.shape, own) for x, own in zip(arrays, names, strict=True) if x is not None)
        pairs = itertools.chain.from_iterable(zip(*pair, strict=True) for pair in named)
        sizes = [size for size, own in pairs if own == name]
        return axes if all(size % _num_shards(axes, mesh) == 0 for size in sizes) else ()

    def run(*arrays: Array | None) -> Any:
        y = f(*arrays)
        return jax.lax.psum(y, split(summed)) if split(summed) else y

    spec = lambda axes: PartitionSpec(*(split(name) or None for name in axes))
    ins = tuple(map(spec, names))
    rest = set(mesh.axis_names) - set(mesh.manual_axes)  # in a kernel every mesh axis is manual
    sharded = jax.shard_map(
        run, in_specs=ins, out_specs=spec(out), axis_names=rest, check_vma=False
    )
    return sharded(*arrays)
