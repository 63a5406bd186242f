"""Heads of a trained model that take the weights of a similar head of another layer.

DirectShare (Cao et al. 2024, arXiv 2402.11819): heads are alike by the cosine of their query and
key matrices side by side. A unit is a key head with the query heads that read it. Of two, the upper
takes the queries, keys, values and outputs of the lower; the pairs most alike come first, and a
unit that others take keeps its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia.architecture import Model
from recursia.convert.dissimilar import can_read
from recursia.errors import ConfigError
from recursia.params import Params
from recursia.sharing import heads

Owners = tuple[int, ...]  # for each unit, counted layer by layer, the one whose weights it takes


def units(params: Params, config: Model) -> Params:
    """Returns the units of a dense model [U ...], by the name of their weight.

    Raises:
      ConfigError: if its mixer has none.
    """
    slot = heads.SLOT
    specs = config.block_specs.get(slot, {})
    if not {"query", "key"} <= heads.axes(specs).keys():
        raise ConfigError(
            "config.block.mixer: heads of queries and keys are compared, and this has none; give "
            "a --workdir with 'grouped_query'"
        )
    count = heads.count(specs)

    def split(weight: Array, axis: int) -> Array:
        apart = weight.reshape(*weight.shape[:axis], count, -1, *weight.shape[axis + 1 :])
        return jnp.moveaxis(apart, axis, 1).reshape(-1, *_without(apart.shape, axis))

    own = params["core"][slot]
    return {name: split(own[name], axis + 1) for name, axis in heads.axes(specs).items()}


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[1:axis], *shape[axis + 1 :])


def similarity(found: Params) -> Float[np.ndarray, "U U"]:
    """Returns the cosine between each two units."""
    flat = [np.asarray(found[name]).reshape(len(found[name]), -1) for name in ("query", "key")]
    rows = np.concatenate(flat, 1).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return rows @ rows.T


def chosen(alike: Float[np.ndarray, "U U"], num_layers: int, count: int) -> Owners:
    """Returns which units take the weights of another.

    Args:
      alike: how alike each two units are.
      num_layers: of the model, which has as many units in each.
      count: units at most that take those of another.
    """
    each = len(alike) // num_layers
    lower, upper = np.triu_indices(len(alike), 1)
    order = np.argsort(-alike[lower, upper], kind="stable")
    owners = list(range(len(alike)))
    for owner, reader in zip(lower[order].tolist(), upper[order].tolist(), strict=True):
        if sum(own != unit for unit, own in enumerate(owners)) == count:
            break
        if owner // each != reader // each and can_read(owners, owner, reader):
            owners[reader] = owner
    return tuple(owners)


def shared(params: Params, config: Model, owners: Owners) -> tuple[Model, Params]:
    """Returns a dense model as one whose units are those of a bank, and its parameters."""
    held, entries = np.unique(owners, return_inverse=True)
    table = entries.reshape(config.num_layers, -1).tolist()
    slot, found = heads.SLOT, units(params, config)
    varies = (*config.varies, (heads.bank_of(slot), (tuple(map(tuple, table)),)))
    target = dataclasses.replace(config, weights=heads.Heads(0), varies=varies)
    own = {name: leaf for name, leaf in params["core"][slot].items() if name not in found}
    bank = jax.tree.map(lambda leaf: leaf[held], found)
    core = {**params["core"], slot: own, heads.bank_of(slot): bank}
    return target, {**params, "core": core}
