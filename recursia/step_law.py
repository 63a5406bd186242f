"""Step Law: a learning rate and a batch from the number of parameters and of tokens.

Li et al. 2025, arXiv 2503.04715, fitted on 3,700 models that share nothing, dense and with experts.
For a model whose weights are used several times the law leaves open which number of parameters is
meant; both readings are given, and the truth may lie outside of them.
"""

import dataclasses

from recursia import accounting, model, params
from recursia.architecture import Model

FINAL_RATE = 1e-5  # the learning rate at the end, in all fits


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the law says for one number of parameters.

    Attributes:
      num_params: parameters without embedding and head.
      learning_rate: peak learning rate of AdamW.
      batch_tokens: tokens per update; it does not depend on the number of parameters.
    """

    num_params: int
    learning_rate: float
    batch_tokens: float


@dataclasses.dataclass(frozen=True)
class StepLaw:
    """Both readings for one model.

    Attributes:
      unique: counts each weight once.
      applied: counts a weight as often as a token is multiplied by it.
      warning: what to know before one is taken; "" for a model that shares nothing.
    """

    unique: Reading
    applied: Reading
    warning: str


def reading(num_params: int, num_tokens: float) -> Reading:
    """Returns the law for a number of parameters without embeddings, and of training tokens.

    Raises:
      ValueError: if one of them is below 1.
    """
    if min(num_params, num_tokens) < 1:
        raise ValueError(
            f"step law: got {num_params} parameters and {num_tokens} tokens; take more"
        )
    rate = 1.79 * num_params**-0.713 * num_tokens**0.307
    return Reading(num_params, rate, 0.58 * num_tokens**0.571)


def step_law(config: Model, num_tokens: float) -> StepLaw:
    """Returns both readings of the law for a model.

    Args:
      config: the model.
      num_tokens: of training.
    """
    specs = model.specs(config)
    outside = params.count(specs["embed"])
    unique = reading(params.count(specs) - outside, num_tokens)
    applied = reading(accounting.applied_parameters(config) - outside, num_tokens)
    if unique == applied:
        return StepLaw(unique, applied, "")
    warning = (
        f"step law: was fitted on models that share nothing; this one has {unique.num_params:,} "
        f"parameters and applies {applied.num_params:,}, for learning rates from "
        f"{applied.learning_rate:.2g} to {unique.learning_rate:.2g}; sweep around both"
    )
    return StepLaw(unique, applied, warning)
