"""Parameters, declared once: shape, logical axes and initializer of each, as a tree of `Spec`."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Leaf = Any  # of a parameter tree: a Spec, then an array, its sharding, or a mask
Params = dict[str, Any]  # a parameter tree or a part of it: by section, slot and name
Initializer = Callable[[Array, tuple[int, ...], Any], Array]

ones = jax.nn.initializers.ones


def normal(std: int | float) -> Initializer:
    """Returns an initializer of independent normal entries with standard deviation `std`."""
    return jax.nn.initializers.normal(std)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Factors of one parameter that a parameterisation derives from the size of the model.

    Attributes:
      init: of its initial entries.
      rate: of the learning rate.
      decay: of the weight decay that the learning rate multiplies.
      gradient: size of its gradients, by which an optimizer divides them, so that `eps` is relative
        to it; or one for each entry of its bank.
    """

    init: float = 1.0
    rate: float = 1.0
    decay: float = 1.0
    gradient: float | tuple[float, ...] = 1.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration of one parameter.

    Attributes:
      shape: lengths of its axes.
      axes: the logical name of each axis; None for an axis that is never sharded.
      init: draws the array from a key, a shape and a dtype.
      is_decayed: whether weight decay applies (not to norms and biases).
      inputs: number of leading axes that are input features of a matrix; the others are output
        features.
      products: how often a step multiplies one token by it.
      lr_scale: factor of the learning rate; gradients are clipped by their norm apart for each
        scale.
      is_reused: whether a training step uses it more than once, or outside the blocks: it is then
        all-gathered before the step instead of in it.
      is_exact: whether it stays float32 whatever the compute dtype.
      is_matrix: whether an optimizer may treat it as matrices from features to features; False for
        routers, low-rank factors and coefficients. Parameters without weight decay, and those with
        a vocabulary axis, are no matrices in any case.
      is_table: whether a step reads few of its rows by their number, so that others have no
        gradient; its last axis is the width of a row.
      is_readout: whether it is a head of its own, whose rows are output features.
      bank: number of leading axes that index bank entries, in front of `inputs`.
      scales: factors of its initial entries and of how it trains.
      together: draws all entries of a bank at once, their number in front of the shape; None draws
        each by `init`, independently.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    is_decayed: bool = True
    inputs: int = 1
    products: int = 1
    lr_scale: float = 1.0
    is_reused: bool = True
    is_exact: bool = True
    is_matrix: bool = True
    is_table: bool = False
    is_readout: bool = False
    bank: int = 0
    scales: Scales = Scales()
    together: Initializer | None = None

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"Spec: shape {self.shape} has {len(self.shape)} axes, names {self.axes} have "
                f"{len(self.axes)}."
            )

    @property
    def lead(self) -> int:
        """Number of leading axes that index matrices: bank entries and experts."""
        return self.bank + (self.axes[self.bank : self.bank + 1] == ("experts",))

    @property
    def matrix(self) -> tuple[int, int, int] | None:
        """The number of matrices, their input and their output features; None if it holds none.

        Every entry of a bank and every expert is a matrix of its own.
        """
        lead, shape = self.lead, self.shape
        rows = lead + self.inputs
        if not (self.is_matrix and self.is_decayed) or "vocab" in self.axes or rows >= len(shape):
            return None
        return math.prod(shape[:lead]), math.prod(shape[lead:rows]), math.prod(shape[rows:])

    def stack(self, sizes: tuple[int, ...], names: tuple[str | None, ...]) -> "Spec":
        """Returns the spec of `sizes` independent copies, along new leading axes."""
        if not sizes:
            return self

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            if self.together is not None:
                entries = self.together(key, (math.prod(sizes), *self.shape), dtype)
                return entries.reshape(shape)
            keys = jax.random.split(key, math.prod(sizes))
            copies = jax.vmap(lambda k: self.init(k, self.shape, dtype))(keys)
            return copies.reshape(shape)

        return dataclasses.replace(
            self,
            shape=sizes + self.shape,
            axes=names + self.axes,
            init=init,
            bank=self.bank + len(sizes),
            together=None,
        )


def stack(tree: Any, sizes: tuple[int, ...], names: tuple[str | None, ...]) -> Any:
    """Returns a tree of `Spec`, each stacked by `Spec.stack`."""
    return jax.tree.map(lambda spec: spec.stack(sizes, names), tree)


def mark(tree: Any, **fields: Any) -> Any:
    """Returns a tree of `Spec` with some fields of each replaced."""
    return jax.tree.map(lambda spec: dataclasses.replace(spec, **fields), tree)


def init(specs: Any, key: Array) -> Any:
    """Returns float32 parameters; the random key of each depends on `key` and its path alone."""

    def draw(path: tuple[Any, ...], spec: Spec) -> Array:
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        drawn = spec.init(jax.random.fold_in(key, name), spec.shape, jnp.float32)
        return drawn if spec.scales.init == 1 else spec.scales.init * drawn

    return jax.tree_util.tree_map_with_path(draw, specs)


def abstract(specs: Any, where: Any = None) -> Any:
    """Returns the shapes, dtypes and shardings of `init(specs, ...)`, as a tree without arrays.

    Args:
      specs: of the parameters.
      where: the sharding of each parameter; None specifies none.
    """
    shape = lambda spec, place=None: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=place)
    return jax.tree.map(shape, specs, *([] if where is None else [where]))


def fingerprint(tree: Any) -> Array:
    """Returns a number of the bits of all parameters, whatever their sharding: a checksum, uint32.

    Each entry's bits are multiplied by an odd number of its place, and added modulo 2^32.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, length in enumerate(leaf.shape):
            iota = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place = place * jnp.uint32(length) + iota
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        bits = bits.astype(jnp.uint32) * (jnp.uint32(2) * place + jnp.uint32(1))
        total = jnp.uint32(16777619) * total + bits.sum(dtype=jnp.uint32)
    return total


def count(specs: Any) -> int:
    """Returns the number of parameters."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs))


@jax.tree_util.register_pytree_with_keys_class
class Apart:
    """Entries of a bank that differ in shape, each a leaf of its own, where others are stacked."""

    def __init__(self, entries: Iterable[Leaf]):
        """Keeps the entries in order."""
        self.entries = tuple(entries)

    def __repr__(self) -> str:
        """Returns the entries in words."""
        return f"Apart{self.entries}"

    def __len__(self) -> int:
        """Returns the number of entries."""
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        """Returns an entry, or for an array of numbers those entries, apart."""
        return Apart(self.entries[i] for i in index) if np.ndim(index) else self.entries[index]

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Leaf]], None]:
        """Returns the entries with their numbers as keys, as JAX asks."""
        keys = map(jax.tree_util.SequenceKey, range(len(self)))
        return list(zip(keys, self.entries, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, entries: Iterable[Leaf]) -> "Apart":
        """Returns entries of the same number, as JAX asks."""
        return cls(entries)


def is_apart(leaf: Any) -> bool:
    """Returns whether a leaf of a bank has its entries apart."""
    return isinstance(leaf, Apart)


def at(tree: Any, index: Any, *, are_distinct: bool = False) -> Any:
    """Returns entry `index` of every leaf's leading axis, or the entries of an array of numbers.

    Args:
      tree: arrays, or entries apart.
      index: of the entries.
      are_distinct: whether several entries differ, and exist, where a program learns their numbers
        as it runs: additions to an entry then need no order, which a GPU would keep by sorting.
    """
    if isinstance(index, np.ndarray) and index.ndim:
        are_distinct = len(set(index.reshape(-1).tolist())) == index.size
    how = {"unique_indices": True, "mode": "promise_in_bounds"}

    def entries(leaf: Any) -> Any:
        if are_distinct and np.ndim(index) and isinstance(leaf, Array):
            return leaf.at[index].get(**how)
        return leaf[index]

    return jax.tree.map(entries, tree, is_leaf=is_apart)
