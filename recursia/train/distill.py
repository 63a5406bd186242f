"""Learning from another model's predictions: the distance of two distributions of the next token.

Distances as in the uptraining of Recursive Transformers (Bae et al. 2024, arXiv 2410.20672):

    forward_kl  -sum p log q, the cross-entropy with the teacher's p: of equal ones, p's entropy
    reverse_kl  sum q log (q / p)
    js          (sum p log (p / m) + sum q log (q / m)) / 2, with m = (p + q) / 2
    tvd         sum |p - q| / 2
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import losses, model, settings
from recursia.architecture import Model
from recursia.layers import embedding

TeacherOutput = tuple[Float[Array, "B T D"], dict[str, Array]]  # hidden states and their head


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model that is only read.

    Attributes:
      model: its configuration.
      params: its float32 parameters.
    """

    model: Model
    params: Any

    def read(self, batch: dict[str, Array]) -> TeacherOutput:
        """Returns its last states of a batch as published, and its head, without gradient."""
        where: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        out = model.apply(self.params, batch["tokens"], self.model, mode="eval", **where)
        head = embedding.head(self.params["embed"], self.model.embed)
        return jax.lax.stop_gradient((out.hidden, head))


def distance(
    kind: settings.Distance,
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    taught: TeacherOutput,
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of each token's distance from its teacher, and each one's.

    Neither model's logits exist for more than a chunk of the tokens. In nats, but for "tvd", which
    is a probability.

    Args:
      kind: the distance.
      hidden: normalised hidden states of the pupil, in its compute dtype.
      head: its float32 output layer.
      taught: the teacher's.
      weights: of each token's distance.
      chunk: tokens of each sequence whose logits exist at a time.
    """
    theirs, their_head = taught
    their_head = losses.cast(their_head, theirs.dtype)
    charge = functools.partial(_charge, _DISTANCES[kind])
    return losses.charged(charge, hidden, head, their_head, theirs, weights, chunk)


def _charge(
    distance: Callable, logits: Array, head: dict[str, Array], theirs: Array
) -> tuple[Array, Callable[[], Array]]:
    log_p = jax.nn.log_softmax(losses.logits(theirs, head))
    each, pull = jax.vjp(lambda logits: distance(log_p, jax.nn.log_softmax(logits)), logits)
    return each, lambda: pull(jnp.ones_like(each))[0]


def _forward_kl(log_p: Array, log_q: Array) -> Array:
    return -(jnp.exp(log_p) * log_q).sum(-1)


def _reverse_kl(log_p: Array, log_q: Array) -> Array:
    return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def _js(log_p: Array, log_q: Array) -> Array:
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return (_reverse_kl(log_m, log_p) + _reverse_kl(log_m, log_q)) / 2


def _tvd(log_p: Array, log_q: Array) -> Array:
    return jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)).sum(-1) / 2


_DISTANCES = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "js": _js, "tvd": _tvd}
