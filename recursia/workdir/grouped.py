"""Small arrays of a state, stored as one.

A save spends about a millisecond of a processor on each array, however small it is. Arrays that
every device holds whole, such as norms, are therefore stored one after another; what of them is
where is among the values beside the state. Whoever restores them says where they go.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

MOST_BYTES = 1 << 20  # of an array that is stored with others
# By the name of a stored array: the names and shapes of what it holds, in order.
Groups = dict[str, list[tuple[str, Sequence[int]]]]


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def stored(state: Any) -> tuple[dict[str, Any], Groups]:
    """Returns the arrays to store in place of a state's, by name, and what those of groups hold."""
    arrays, alike = named(state), collections.defaultdict(list)
    for name, x in arrays.items():
        is_whole = isinstance(x, jax.Array) and x.sharding.is_fully_replicated
        if is_whole and x.nbytes <= MOST_BYTES:
            alike[x.dtype, _whole(x.sharding)].append(name)
    groups: Groups = {}
    for number, ((dtype, where), names) in enumerate(alike.items()):
        group = f"group{number}:{dtype}"
        groups[group] = [(name, arrays[name].shape) for name in names]
        arrays[group] = _joining(where)([arrays.pop(name) for name in names])
    return arrays, groups


def wanted(abstract: Any, groups: Groups) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of the stored arrays that hold those of a tree."""
    group_of, found = {n: group for group in groups for n, _ in groups[group]}, {}
    for name, leaf in named(abstract).items():
        if (group := group_of.get(name)) is None:
            found[name] = leaf
        else:
            size = sum(math.prod(shape) for _, shape in groups[group])
            dtype, where = jnp.dtype(group.partition(":")[2]), _whole(leaf.sharding)
            found[group] = jax.ShapeDtypeStruct((size,), dtype, sharding=where)
    return found


def taken(found: dict[str, Any], abstract: Any, groups: Groups) -> Any:
    """Returns the tree whose arrays are in those that `wanted` named."""
    parts = dict(part for g in groups if g in found for part in _parts(found[g], groups[g]))
    leaves = [
        _laid(parts[name], leaf.sharding) if name in parts else found[name]
        for name, leaf in named(abstract).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _whole(where: Sharding) -> Sharding:
    """Returns the sharding of a vector that each of the same devices holds whole."""
    return NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where


@functools.lru_cache(maxsize=8)
def _joining(where: Sharding) -> Callable[[list[Array]], Array]:
    """Returns the compiled function from arrays to one."""
    join = lambda arrays: jnp.concatenate([x.ravel() for x in arrays])
    return jax.jit(join, out_shardings=where)


def _parts(array: Array, held: list[tuple[str, Sequence[int]]]) -> Iterator[tuple[str, np.ndarray]]:
    whole, place = np.asarray(array), 0
    for name, shape in held:
        size = math.prod(shape)
        yield name, whole[place : place + size].reshape(shape)
        place += size


def _laid(part: np.ndarray, where: Sharding) -> Array:
    return jax.make_array_from_callback(part.shape, where, lambda index: part[index])
