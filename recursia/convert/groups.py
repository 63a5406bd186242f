"""Groups of neighbouring layers that are to share their weights.

By clustering (CRaSh, arXiv 2310.15477): every layer begins as a group of its own, and the two
neighbouring groups whose states are most alike become one until few enough are left. Alike is the
mean over their layers of the linear centred kernel alignment (Kornblith et al. 2019, arXiv
1905.00414). Norms are not shared (FoldGPT, arXiv 2407.00928).
"""

import dataclasses
import itertools

import jax
import numpy as np
from jaxtyping import Float

from recursia.architecture import Model

Groups = tuple[int, ...]  # the group of each layer, from 0


def contiguous(num_layers: int, count: int) -> Groups:
    """Returns groups that are as equal in size as they can be."""
    return tuple(layer * count // num_layers for layer in range(num_layers))


def alignment(states: Float[np.ndarray, "L N D"]) -> Float[np.ndarray, "L L"]:
    """Returns the linear centred kernel alignment of the states of all pairs of layers."""
    centred = states.astype(np.float64) - states.mean(1, keepdims=True, dtype=np.float64)
    cross = np.array([[np.sum((x.T @ y) ** 2) for y in centred] for x in centred])
    own = np.sqrt(np.diag(cross))
    return cross / np.outer(own, own)


def clustered(alike: Float[np.ndarray, "L L"], count: int) -> Groups:
    """Returns `count` groups of neighbouring layers.

    Args:
      alike: how alike each two layers are.
      count: groups, at most as many as layers.
    """
    found = [[layer] for layer in range(len(alike))]
    while len(found) > count:
        near = [alike[np.ix_(a, b)].mean() for a, b in itertools.pairwise(found)]
        first = int(np.argmax(near))
        found[first : first + 2] = [found[first] + found[first + 1]]
    return tuple(number for number, layers in enumerate(found) for _ in layers)


def shared(config: Model, groups: Groups) -> Model:
    """Returns a model of one recursion whose layers share the matrices of their group."""
    has_matrices = lambda tree: any(spec.is_decayed for spec in jax.tree.leaves(tree))
    slots = [slot for slot in config.block.slots if has_matrices(config.block_specs[slot])]
    return dataclasses.replace(config, varies=tuple((slot, (groups,)) for slot in slots))
