"""Load balancing without a loss: changes of parameters that follow an update, not a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from recursia.architecture import Model
from recursia.params import Params


def after_step(
    params: Params, metrics: dict[str, Array], config: Model, trains: PyTree[bool]
) -> Params:
    """Returns the parameters after an update, with those that follow the metrics of its batch.

    Args:
      params: as the optimizer updated them.
      metrics: of the step.
      config: the model at this step.
      trains: whether each parameter trains; those that do not stay as they are.
    """
    changed: dict[str, Any] = {**params, "depth": config.depth.after_step(params["depth"], metrics)}
    for branch, stacks, prefix in config.branches:
        own = {n.removeprefix(prefix): of for n, of in metrics.items() if n.startswith(prefix)}
        for slot in branch.followers:
            banks = [changed[name][slot] for name in stacks]
            ends = [sum(map(len, banks[: n + 1])) for n in range(len(banks))]
            moved = branch.after_step(jnp.concatenate(banks), own)
            for name, bank in zip(stacks, jnp.split(moved, ends[:-1]), strict=True):
                changed[name] = {**changed[name], slot: bank}
    return jax.tree.map(lambda x, new, yes: new if yes else x, params, changed, trains)
