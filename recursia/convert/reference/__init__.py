"""Configurations, parameters and outputs of the authors' code, as ours: one module a family.

A family's module offers

    case(file) -> Case            from the arrays of a parity file (see `evaluate.parity`)
    case(file) -> Updates         the same, of an optimizer

and may refuse, with ConfigError, an option that has no counterpart here. Names and layouts of
arrays are those of the authors' `state_dict`; a PyTorch linear weight is `[out, in]`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from recursia import model
from recursia.architecture import Model
from recursia.depth.policy import Aux
from recursia.sharing import key_banks
from recursia.sharing.schedule import KEYS

FAMILIES = {
    "recursive": "mor",
    "mor": "mor",
    "moeut": "moeut",
    "huginn": "huginn",
    "hrm_text": "hrm_text",
    "lckv": "lckv",
    "mlkv": "mlkv",
    "muon": "muon",
}
OPTIMIZERS = ("muon",)  # families of files without a model


@dataclasses.dataclass(frozen=True)
class Case:
    """What one file asks of us.

    Attributes:
      config: our model.
      params: our parameter tree from arrays under their names: of weights, or of gradients.
      tokens: what the model reads.
      targets: the next token of each; -1 where there is none.
      options: further arguments of `model.apply`.
      losses: from what our depth policy and blocks report, (name in the file, our value) of the
        losses and statistics that the file may hold besides cross-entropy and their total.
      arrays: likewise, of arrays compared as logits are.
      kept: from the same, the tokens that each recursion processed, (recursion, mask [B T]).
    """

    config: Model
    params: Callable[[Mapping[str, np.ndarray]], Any]
    tokens: np.ndarray  # [B T]
    targets: np.ndarray  # [B T]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    losses: Callable[[Aux], list[tuple[str, Any]]] = lambda aux: []
    arrays: Callable[[Aux, Any], list[tuple[str, Any]]] = lambda aux, params: []
    kept: Callable[[Aux], list[tuple[int, Any]]] = lambda aux: []


@dataclasses.dataclass(frozen=True)
class Updates:
    """What one file of an optimizer asks of us: pairs of our array and theirs.

    Attributes:
      exact: computed in float32 throughout.
      rounded: with products in bfloat16, whose order of additions is the machine's.
    """

    exact: Sequence[tuple[Array, np.ndarray]]
    rounded: Sequence[tuple[Array, np.ndarray]]


def under(file: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns a file's arrays whose name has a prefix, without it, shared ones by all names."""
    found = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    # A shared tensor's gradient sums over its uses on both sides: any of its names will do.
    return found | {name: found[owner] for name, owner in aliases(file).items()}


def aliases(file: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the name that owns each shared tensor of a file, by its other names."""
    return {k.removeprefix("alias/"): str(v) for k, v in file.items() if k.startswith("alias/")}


def banks(config: Model, block: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Returns the core's banks, each entry from the first step that uses it.

    Args:
      config: our model.
      block: from the number of a step, its weights by slot; what makes keys and values is read of
        steps that make some.
    """
    plan, weights = config.schedule, functools.lru_cache(block)

    def stacked(slot: str, bank: str, specs: Any) -> Any:
        steps = np.unique(plan.owners) if bank.endswith(KEYS) else np.arange(plan.num_steps)
        entry = plan.entry(bank)[steps]
        firsts = [int(steps[entry == at][0]) for at in range(plan.size(bank))]
        trees = [weights(step)[slot] for step in firsts]
        if isinstance(specs, dict):
            trees = [{name: tree[name] for name in specs} for tree in trees]
        return jax.tree.map(lambda s, *leaves: np.stack(leaves).reshape(s.shape), specs, *trees)

    found: dict[str, Any] = {}
    for slot, tree in model.specs(config)["core"].items():
        parts = key_banks.split(slot, tree, config.key_weights)
        found |= {bank: stacked(slot, bank, specs) for bank, specs in parts.items()}
    return key_banks.join(found)
