"""Copies the parameters of a model that fit into a model of another architecture.

Cross-architecture transfer (XATL, arXiv 2404.02684): embeddings, norms and feed-forwards, and
whatever else both have under the same name and of the same shape. All others start as in a new
model.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recursia import model
from recursia.architecture import Model
from recursia.convert import recursive
from recursia.convert.names import Path, leaves
from recursia.params import Params
from recursia.sharing import key_banks


def fitting(
    params: Params, config: Model, target: Model, start: recursive.Start, *, key: jax.Array
) -> tuple[Params, list[Path]]:
    """Returns parameters of `target`, and the paths of those that start as in a new model.

    Args:
      params: of the other model.
      config: the other model.
      target: the model to initialise, of as many layers.
      start: as of `recursive.recursive`.
      key: for all random draws.

    Raises:
      ValueError: for another number of layers.
    """
    if config.num_layers != target.num_layers:
        raise ValueError(
            f"num_layers: got {target.num_layers}, and the model to start from has "
            f"{config.num_layers}; take the same"
        )
    theirs = [dict(leaves(layer)) for layer in recursive.layers(params, config)]
    specs = {name: dict(leaves(target.end_specs)) for name in target.ends}
    specs["core"] = dict(leaves(target.block_specs))
    outer = dict(leaves(params))
    shuffled = jax.random.permutation(jax.random.fold_in(key, 0), target.schedule.num_steps)
    order, prelude = np.asarray(shuffled), target.ends["prelude"]
    after = prelude + target.schedule.num_steps
    ends = {"prelude": range(prelude), "coda": range(after, target.num_layers)}
    new: list[Path] = []

    def layer_groups(section: str, slot: str, name: str) -> list[list[int]]:
        if section != "core":
            return [[layer] for layer in ends[section]]
        bank = key_banks.bank(slot, name, target.key_weights)
        return recursive.sources(target, bank, start, order)

    def leaf(path: Path, drawn: Any) -> Any:
        section, _, inner = path.partition(".")
        slot, _, name = inner.partition(".")
        if section in specs:
            spec = specs[section].get(inner)
            groups = layer_groups(section, slot, name.partition(".")[0]) if spec else []
            used = [theirs[i].get(inner) for group in groups for i in group]
            if spec and all(found is not None and found.shape == spec.shape for found in used):
                means = [jnp.stack([theirs[i][inner] for i in group]).mean(0) for group in groups]
                return jnp.stack(means).reshape(drawn.shape)
        elif (
            section in ("embed", "final_norm")
            and path in outer
            and outer[path].shape == drawn.shape
        ):
            return outer[path]
        new.append(path)
        return drawn

    made = model.init(target, key)
    found = [leaf(path, drawn) for path, drawn in leaves(made)]
    return jax.tree.unflatten(jax.tree.structure(made), found), new
