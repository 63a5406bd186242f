"""Configurations, parameters and outputs of the authors' code, as ours: one module a family.

The module of a family offers

    case(file) -> Case            from the arrays of a parity file (see `evaluate.parity`)
    case(file) -> Updates         the same, of an optimizer
    case(file) -> Layer           the same, of layers without a model around them

and raises ConfigError for an option that has no counterpart here. Names and layouts of arrays are
those of the authors' `state_dict`; a PyTorch linear weight is `[out, in]`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from recursia.architecture import Model
from recursia.depth.policy import Aux
from recursia.optimizers.optimizer import Optimizer
from recursia.params import Params

FAMILIES = {
    "adam_atan2": "adam_atan2",
    "coe": "coe",
    "recursive": "mor",
    "mor": "mor",
    "moeut": "moeut",
    "huginn": "huginn",
    "hrm_text": "hrm_text",
    "megrez2": "megrez2",
    "lckv": "lckv",
    "memory_layers": "memory_layers",
    "mlkv": "mlkv",
    "mpo": "mpo",
    "muon": "muon",
    "nanogpt_mup": "nanogpt_mup",
    "nanogpt_mup_moe": "nanogpt_mup",
    "ouro": "ouro",
    "parscale": "parscale",
    "rmoe": "rmoe",
    "subformer": "subformer",
    "umoe": "umoe",
    "widenet": "widenet",
    "wsd_muon": "wsd_muon",
}
OPTIMIZERS = ("adam_atan2", "muon", "wsd_muon")  # families of files without a model
LAYERS = ("coe", "memory_layers", "mpo", "widenet")  # families of files of layers alone

Compared = list[tuple[str, Array]]  # (name in the file, our value)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the model of a file is trained.

    Attributes:
      optimizer: at a constant learning rate.
      multipliers: factors of the forward pass, by their names in the file.
    """

    optimizer: Optimizer
    multipliers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and how its outputs compare with the arrays of one file.

    Attributes:
      config: our model.
      params: returns our parameter tree from arrays by name, of weights or of gradients.
      tokens: what the model reads.
      targets: the next token of each; -1 if there is none.
      options: further arguments of `model.apply`.
      losses: returns losses and statistics other than cross-entropy and the total loss; those that
        the file does not hold are ignored.
      arrays: returns arrays that are compared as logits are, likewise.
      kept: returns (recursion, mask [B T]) of the tokens that each recursion processed.
      vanishing: our names of weights without influence, whose gradient is rounding alone.
      recipe: of a file that has one; None compares none.
    """

    config: Model
    params: Callable[[Mapping[str, np.ndarray]], Params]
    tokens: np.ndarray  # [B T]
    targets: np.ndarray  # [B T]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    losses: Callable[[Aux], Compared] = lambda aux: []
    arrays: Callable[[Aux, Params], Compared] = lambda aux, params: []
    kept: Callable[[Aux], list[tuple[int, Array]]] = lambda aux: []
    vanishing: frozenset[str] = frozenset()
    recipe: Recipe | None = None


@dataclasses.dataclass(frozen=True)
class Updates:
    """What one file of an optimizer holds: pairs of our array and the authors'.

    Attributes:
      exact: computed in float32 throughout.
      rounded: computed with products in bfloat16, whose rounding depends on the processor.
    """

    exact: Sequence[tuple[Array, np.ndarray]]
    rounded: Sequence[tuple[Array, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one file of layers holds: pairs of our array and the authors'.

    Attributes:
      outputs: what the layers compute, and their weights where these are computed.
      losses: likewise.
      gradients: of the losses.
    """

    outputs: list[tuple[Array, np.ndarray]]
    losses: list[tuple[Array, np.ndarray]]
    gradients: list[tuple[Array, np.ndarray]]


def under(file: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns a file's arrays whose name has a prefix, without it, shared ones by all names."""
    arrays = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    # A shared tensor's gradient sums over its uses on both sides: any of its names will do.
    return arrays | {name: arrays[owner] for name, owner in aliases(file).items()}


def aliases(file: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the name that owns each shared tensor of a file, by its other names."""
    return {k.removeprefix("alias/"): str(v) for k, v in file.items() if k.startswith("alias/")}
