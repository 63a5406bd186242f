"""The mesh, and the one place where logical axis names become mesh axes.

Devices along "data", "fsdp" and "expert" hold different rows of a batch; "fsdp" also splits
parameters, "expert" the banks of experts, "tensor" heads, hidden widths and vocabulary, "context"
the tokens of a row. A training step runs by rows: each device gathers a parameter that "fsdp"
splits, once if all recursions share it (`Shard`), and sums gradients at the end. Over "tensor" and
"context" the compiler splits what it can, and `locally` the rest.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia import batch, ranges
from recursia.errors import ConfigError
from recursia.params import Leaf, Spec

AXES = ("data", "fsdp", "expert", "context", "tensor")  # those that talk most lie closest
GATHERED = ("data", "fsdp")  # a parameter split over these is whole where it is used
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
    """How devices are laid out: so many along each axis, of which one may be -1 for all left.

    Attributes:
      data: only the batch is split.
      fsdp: batch and parameters are split.
      tensor: heads, hidden widths and vocabulary are split.
      context: the tokens of a sequence are split.
      expert: batch and banks of experts are split.
      rules: mesh axes that split each logical axis, where they differ from `RULES`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    rules: Rules = ()

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
            if unknown := set(axes) - set(AXES):
                raise ValueError(f"rules.{name}: no mesh axis {min(unknown)!r}; there is {AXES}")
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


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over `devices` (None: all there are).

    Raises:
      ConfigError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in config.sizes.values() if size != -1)
    sizes = {axis: len(devices) // known if s == -1 else s for axis, s in config.sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        given = " x ".join(f"{axis} {size}" for axis, size in config.sizes.items())
        raise ConfigError(
            f"config.mesh: {given} does not make {len(devices)} devices; let one of them be -1"
        )
    grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(rows: int, seq_len: int, mesh: Mesh) -> None:
    """Checks that the rows computed at a time, and their tokens, divide over the devices.

    Raises:
      ConfigError: if they do not.
    """
    ways = math.prod(mesh.shape[axis] for axis in batch.AXES)
    if rows % ways:
        raise ConfigError(
            f"config.train.batch_size: {rows} sequences at a time do not divide over {ways} "
            "devices; change batch_size, num_microbatches or config.mesh"
        )
    if seq_len % mesh.shape["context"]:
        raise ConfigError(
            f"config.train.seq_len: {seq_len} tokens do not divide over mesh.context "
            f"{mesh.shape['context']}; change one of them"
        )


def splitting(name: str | None, rules: Rules) -> tuple[str, ...]:
    """Returns the mesh axes that split a logical axis; none split one without a name."""
    return () if name is None else dict(rules).get(name, ())


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
            ways = math.prod(mesh.shape[axis] for axis in splitting(name, rules))
            if size % ways:
                remedy = "the width"
                if name == "vocab":
                    remedy = f"set config.model.vocab_size={math.ceil(size / ways) * ways}"
                raise ConfigError(
                    f"config.mesh: {name} of {jax.tree_util.keystr(path)} is {size} wide, which "
                    f"{ways} devices do not divide; change config.mesh or {remedy}"
                )
        return NamedSharding(mesh, partition(spec.axes, rules))

    return jax.tree_util.tree_map_with_path(place, specs)


def fitting(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the sharding of every parameter, on a mesh that the model was not made for.

    An axis that does not divide over the devices that would split it stays whole.
    """

    def place(spec: Spec) -> NamedSharding:
        ways = lambda name: math.prod(mesh.shape[axis] for axis in splitting(name, rules))
        pairs = zip(spec.shape, spec.axes, strict=True)
        axes = tuple(name if size % ways(name) == 0 else None for size, name in pairs)
        return NamedSharding(mesh, partition(axes, rules))

    return jax.tree.map(place, specs)


def by_rows(spec: PartitionSpec) -> PartitionSpec:
    """Returns the part of a partition that is over axes which split the batch."""
    keep = lambda names: tuple(name for name in names if name in batch.AXES) or None
    return PartitionSpec(*map(keep, _names(spec)))


def summed(x: Array, spec: PartitionSpec) -> Array:
    """Returns the sum over the devices that hold the same part of an array, but other rows."""
    split = set(itertools.chain.from_iterable(_names(spec)))
    axes = tuple(axis for axis in batch.axes() if axis not in split)
    return jax.lax.psum(x, axes) if axes else x


def _names(spec: PartitionSpec) -> list[tuple[str, ...]]:
    return [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]


@struct.dataclass
class Shard:
    """A device's part of a parameter, made whole in the step that uses it.

    Attributes:
      part: float32.
      dims: the axes that are split, counted from the last, and over which mesh axes; leading axes
        may be sliced away.
    """

    part: Leaf
    dims: tuple[tuple[int, tuple[str, ...]], ...] = struct.field(pytree_node=False)


def shard(spec: Spec, part: Array, mesh: Mesh, rules: Rules) -> Array | Shard:
    """Returns the part of a parameter as one, or as it is if it is whole."""
    dims = []
    for dim, name in enumerate(spec.axes):
        split = tuple(axis for axis in splitting(name, rules) if axis in GATHERED)
        if math.prod(mesh.shape[axis] for axis in split) > 1:
            dims.append((dim - len(spec.axes), split))
    return Shard(part, tuple(dims)) if dims else part


def gathered(weight: Array | Shard, dtype: Any, moved: Any = None) -> Array:
    """Returns a weight in `dtype`, gathered if it is a shard.

    Args:
      weight: float32.
      dtype: of the result.
      moved: dtype in which it travels, and to which it is rounded; None is `dtype`. Its gradient
        is summed over devices in float32.
    """
    moved = dtype if moved is None else moved
    if isinstance(weight, Shard):
        return _gather(weight.part, weight.dims, moved, dtype)
    return weight.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(part: Array, dims: tuple[Any, ...], moved: Any, dtype: Any) -> Array:
    x = part.astype(moved)
    for dim, axes in dims:
        x = jax.lax.all_gather(x, axes, axis=x.ndim + dim, tiled=True)
    return x.astype(dtype)


def _scatter(dims: tuple[Any, ...], moved: Any, dtype: Any, _: None, grad: Array) -> tuple[Array]:
    grad = grad.astype(jnp.float32)
    for dim, axes in reversed(dims):
        place = grad.ndim + dim
        grad = jax.lax.psum_scatter(grad, axes, scatter_dimension=place, tiled=True)
    return (grad,)


_gather.defvjp(lambda part, *how: (_gather(part, *how), None), _scatter)


def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Asks the compiler to split activations so, over the axes that are its own to split."""
    free = _compilers_axes()
    names = (dict(RULES).get(axis, ()) if axis else () for axis in axes)
    spec = [tuple(name for name in each if name in free) or None for each in names]
    if not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _compilers_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the compiler splits this program, if more than one long."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(a for a in mesh.axis_names if a not in mesh.manual_axes and mesh.shape[a] > 1)


def ways(name: str) -> int:
    """Returns into how many parts the compiler may split an axis of this name."""
    mesh, free = jax.sharding.get_abstract_mesh(), _compilers_axes()
    return math.prod(mesh.shape[axis] for axis in dict(RULES)[name] if axis in free)


def is_split(name: str, parts: int | None = None, is_local: bool = False) -> bool:
    """Returns whether devices hold parts of an axis of this name, whoever splits it.

    Args:
      name: of a logical axis.
      parts: into which it falls anyway; then only whether each device holds whole ones.
      is_local: whether the question is asked inside `locally`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = mesh.manual_axes if is_local and not mesh.empty else _compilers_axes()
    ways = math.prod(mesh.shape[axis] for axis in dict(RULES)[name] if axis in free)
    return ways > 1 and (parts is None or parts % ways == 0)


def locally(
    f: Callable[..., Array],
    arrays: tuple[Array | None, ...],
    names: tuple[tuple[str | None, ...], ...],
    out: tuple[str | None, ...],
    summed: str | None = None,
) -> Array:
    """Runs `f` on each device's part of arrays: for what no compiler can split, such as a kernel.

    Args:
      f: from arrays to an array.
      arrays: what it takes; None stays None.
      names: logical axes of each. One is split if its devices divide every axis of that name, and
        left whole otherwise.
      out: those of the result.
      summed: a logical axis that `f` contracts: where it is split, results are summed.
    """
    free, mesh = _compilers_axes(), jax.sharding.get_abstract_mesh()
    if not free:
        return f(*arrays)

    @functools.cache
    def split(name: str | None) -> tuple[str, ...]:
        axes = tuple(axis for axis in splitting(name, RULES) if axis in free)
        ways = math.prod(mesh.shape[axis] for axis in axes)
        named = ((x.shape, its) for x, its in zip(arrays, names, strict=True) if x is not None)
        each = itertools.chain.from_iterable(zip(*pair, strict=True) for pair in named)
        return axes if all(size % ways == 0 for size, its in each if its == name) else ()

    def run(*arrays: Array | None) -> Array:
        y = f(*arrays)
        return jax.lax.psum(y, split(summed)) if split(summed) else y

    spec = lambda axes: PartitionSpec(*(split(name) or None for name in axes))
    ins = tuple(map(spec, names))
    rest = set(mesh.axis_names) - set(mesh.manual_axes)  # a kernel takes none of the compiler's
    every = jax.shard_map(run, in_specs=ins, out_specs=spec(out), axis_names=rest, check_vma=False)
    return every(*arrays)
