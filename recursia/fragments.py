"""Fragments of parameters: parts that are exchanged one at a time, by entries of banks.

The entries of a bank, which are the unique weights of blocks, go to the fragments in turn (strided,
as arXiv 2501.18512 prefers). What is in no bank, such as embedding, head and final norm, is in the
last fragment. A parameter that does not train is in none.
"""

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array, PyTree

from recursia.errors import ConfigError
from recursia.params import Leaf, Params, Spec

Part = slice | None  # of the entries of a bank, or the whole of what is in no bank


@dataclasses.dataclass(frozen=True)
class Fragment:
    """One fragment of a tree of parameters.

    Attributes:
      parts: what it has of each leaf, in the order of `jax.tree.leaves`; None is nothing.
      specs: of those leaves.
    """

    parts: tuple[Part, ...]
    specs: tuple[Spec, ...]

    def take(self, tree: PyTree, lead: int = 0) -> list[Array]:
        """Returns its part of every leaf that has one.

        Args:
          tree: like the parameters, or with so many axes in front.
          lead: the number of those axes.
        """
        leaves = zip(jax.tree.leaves(tree), self.parts, self.specs, strict=True)
        return [
            leaf[(slice(None),) * lead + (part,)] if spec.bank else leaf
            for leaf, part, spec in leaves
            if part is not None
        ]

    def put(self, tree: PyTree, values: list[Leaf], lead: int = 0) -> Any:
        """Returns the tree with its parts replaced by what `take` returned of another."""
        leaves, structure = jax.tree.flatten(tree)
        rest = iter(values)
        for i, (part, spec) in enumerate(zip(self.parts, self.specs, strict=True)):
            if part is None:
                continue
            value = next(rest)
            where = (slice(None),) * lead + (part,)
            is_whole = value.shape == leaves[i].shape or not spec.bank
            leaves[i] = value if is_whole else leaves[i].at[where].set(value)
        return jax.tree.unflatten(structure, leaves)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array that `take` returns of the parameters."""
        found = []
        for part, spec in zip(self.parts, self.specs, strict=True):
            if part is not None:
                count = len(range(*part.indices(spec.shape[0]))) if spec.bank else 0
                found.append((count, *spec.shape[1:]) if spec.bank else spec.shape)
        return found

    @property
    def taken(self) -> list[Spec]:
        """The specs of the leaves of which it has a part."""
        return [s for s, part in zip(self.specs, self.parts, strict=True) if part is not None]

    @property
    def size(self) -> tuple[int, int]:
        """The numbers that it has, and the matrices that they are of."""
        pairs = list(zip(self.shapes, self.taken, strict=True))
        return (
            sum(math.prod(shape) for shape, _ in pairs),
            sum(shape[0] if spec.bank else 1 for shape, spec in pairs),
        )


def fragments(specs: Params, trains: PyTree[bool], count: int) -> tuple[Fragment, ...]:
    """Returns the fragments, which hold every parameter that trains exactly once.

    Args:
      specs: of the parameters.
      trains: whether each of them trains.
      count: the number of fragments.

    Raises:
      ConfigError: if one would hold nothing.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(specs), strict=True)
    moving = jax.tree.leaves(trains)

    def part(fragment: int, path: Any, spec: Spec) -> Part:
        if spec.bank:
            return slice(fragment, None, count) if fragment < spec.shape[0] else None
        # Entries of a bank that differ in shape are leaves of their own, with their number as key.
        entry = path[-1].idx if isinstance(path[-1], jax.tree_util.SequenceKey) else -1
        return slice(None) if fragment == entry % count else None

    made = []
    for fragment in range(count):
        chosen = (
            part(fragment, path, spec) if moves else None
            for path, spec, moves in zip(paths, leaves, moving, strict=True)
        )
        made.append(Fragment(tuple(chosen), leaves))
    if empty := [f for f in made if not any(part is not None for part in f.parts)]:
        raise ConfigError(
            f"config.replicas.num_fragments: {count} fragments, of which {len(empty)} would hold "
            f"no parameter; take {count - len(empty)}"
        )
    return tuple(made)
