"""Layers that can read the keys and values of another, found by trial.

KVSharer (arXiv 2410.18517): of all pairs of layers, those whose keys and values differ most are
tried first: the upper layer reads those of the lower one. A trial is kept where the last states of
the model stay as they were, by their mean cosine.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from recursia.architecture import Model
from recursia.convert import calibration, recursive
from recursia.params import Params


@dataclasses.dataclass(frozen=True)
class Trial:
    """A layer that read the keys and values of another.

    Attributes:
      reader: the layer.
      owner: the layer whose keys and values it read.
      distance: Euclidean, between the keys and values of the two.
      cosine: mean over tokens between the last states and those of the model that shares none.
      is_kept: whether it reads them from now on.
    """

    reader: int
    owner: int
    distance: float
    cosine: float
    is_kept: bool


def search(
    params: Params, config: Model, batches: calibration.Batches, count: int, bound: float
) -> tuple[Model, Params, list[Trial]]:
    """Returns a model whose layers share keys and values, its parameters, and all trials.

    Args:
      params: of the model.
      config: a model of one recursion, each layer with keys of its own.
      batches: a text.
      count: layers at most that are to read the keys of another.
      bound: the cosine has to be above it; with 1 nothing is shared.
    """
    owners, trials = list(range(config.num_layers)), []
    before = calibration.hidden(params, config, batches)
    found, weights = config, params
    for owner, reader, distance in pairs(calibration.keys(params, config, batches)):
        if sum(t.is_kept for t in trials) == count or bound >= 1:
            break
        if not can_read(owners, owner, reader):
            continue
        tried = [*owners[:reader], owner, *owners[reader + 1 :]]
        target, made = reading(params, config, tried)
        near = cosine(before, calibration.hidden(made, target, batches))
        trials.append(Trial(reader, owner, distance, near, near > bound))
        if near > bound:
            owners, found, weights = tried, target, made
    return found, weights, trials


def can_read(owners: Sequence[int], owner: int, reader: int) -> bool:
    """Returns whether a layer may read the keys of another: both have their own, none reads its.

    Args:
      owners: for each layer, the layer whose keys it reads.
      owner: the other layer.
      reader: the layer.
    """
    return owners[owner] == owner and list(owners).count(reader) == 1 and owners[reader] == reader


def reading(params: Params, config: Model, owners: Sequence[int]) -> tuple[Model, Params]:
    """Returns a dense model in which layers read the keys of `owners`, and its parameters."""
    kv = dataclasses.replace(config.kv, kv_sharing=(tuple(owners),))
    target = dataclasses.replace(config, kv=kv)
    return target, recursive.recursive(params, config, target, "first", key=jax.random.key(0))


def pairs(keys: Float[np.ndarray, "L M"]) -> list[tuple[int, int, float]]:
    """Returns all pairs of a lower and an upper layer, with their distance, the farthest first."""
    apart = lambda a, b: float(np.linalg.norm(keys[a] - keys[b]))
    found = [(a, b, apart(a, b)) for a, b in itertools.combinations(range(len(keys)), 2)]
    return sorted(found, key=lambda pair: -pair[2])


def cosine(ours: Float[np.ndarray, "N D"], theirs: Float[np.ndarray, "N D"]) -> float:
    """Returns the mean over rows of the cosine between two arrays."""
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.mean((ours * theirs).sum(1) / np.maximum(sizes, 1e-30)))
