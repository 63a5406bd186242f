"""The matrices of a slot by their path, for weight kinds that replace or complete them."""

import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax

from recursia.params import Params, Spec


def named(tree: Any) -> dict[str, Spec]:
    """Returns the matrices of a slot by their path; norms and biases are not decayed."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    is_matrix = lambda spec: spec.is_decayed and len(spec.shape) > spec.inputs
    return {name(path): spec for path, spec in leaves if is_matrix(spec)}


def replaced(tree: Any, names: Container[str], f: Callable[[str, Any], Any]) -> Any:
    """Returns the tree of a slot with `f(name, leaf)` for leaves of these names."""
    leaf = lambda path, x: f(name(path), x) if name(path) in names else x
    return jax.tree_util.tree_map_with_path(leaf, tree)


def others(tree: Any) -> dict[str, Any]:
    """Returns the other leaves of a slot by their path."""
    leaves = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {path: leaf for path, leaf in leaves.items() if path not in named(tree)}


def joined(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """Returns a tree like that of a slot, of leaves by their path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[name(path)], tree)


def check_listed(slots: tuple[str, ...]) -> None:
    """Refuses a setting without a slot, or with one twice."""
    if not slots or len(set(slots)) < len(slots):
        raise ValueError(f"slots: got {slots}, takes at least one, each once")


def check(block: Params, slots: tuple[str, ...]) -> None:
    """Refuses slots that a block lacks, or whose matrices a weight kind cannot replace.

    Raises:
      ValueError: with the reason.
    """
    for slot in slots:
        if slot not in block:
            raise ValueError(f"weights.slots: the block has no {slot!r}; it has {', '.join(block)}")
        if has_bank(block[slot]) or not named(block[slot]):
            raise ValueError(
                f"weights.slots: {slot!r} is not made of matrices that every token is "
                "multiplied by (norms are not, nor experts); leave it out"
            )


def has_bank(tree: Any) -> bool:
    """Returns whether a slot holds a bank of experts."""
    return any((spec.axes[0] or "").startswith("expert") for spec in jax.tree.leaves(tree))


def name(path: Any) -> str:
    """Returns the name of a leaf of a slot."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "weight"


def widths(spec: Spec) -> tuple[int, int]:
    """Returns the numbers of input and output features of a matrix."""
    return math.prod(spec.shape[: spec.inputs]), math.prod(spec.shape[spec.inputs :])
