"""Distillation: distances between a teacher's and a student's next-token distributions.

The distances are those of Recursive Transformers (Bae et al. 2024, arXiv 2410.20672). With the
teacher's p and the student's q:

    forward_kl  -sum p log q, the cross-entropy, which differs from the divergence by p's entropy
    reverse_kl  sum q log (q / p)
    js          (sum p log (p / m) + sum q log (q / m)) / 2, with m = (p + q) / 2
    tvd         sum |p - q| / 2
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import losses, model, settings
from recursia.architecture import Model
from recursia.layers import embedding
from recursia.params import Params

TeacherOutput = tuple[Float[Array, "B T D"], dict[str, Array]]  # hidden states and the head


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model whose predictions are learnt from.

    Attributes:
      model: its configuration.
      params: its float32 parameters.
    """

    model: Model
    params: Params

    def read(self, batch: Mapping[str, Array]) -> TeacherOutput:
        """Returns the hidden states of a batch in eval mode, and the head, without gradient."""
        out = model.apply(
            self.params,
            batch["tokens"],
            self.model,
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            mode="eval",
        )
        head = embedding.head(self.params["embed"], self.model.embed)
        return jax.lax.stop_gradient((out.hidden, head))


def distance(
    kind: settings.Distance,
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    teacher: TeacherOutput,
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of the tokens' distances from the teacher, and each distance.

    Both models' logits exist for one chunk of tokens at a time. Distances are in nats, except
    "tvd", which is a probability.

    Args:
      kind: the distance.
      hidden: normalised hidden states of the student, in its compute dtype.
      head: the student's float32 output layer.
      teacher: hidden states and head of the teacher.
      weights: of each token's distance.
      chunk: tokens of each sequence whose logits exist at a time.
    """
    teacher_hidden, teacher_head = teacher
    teacher_head = losses.cast(teacher_head, teacher_hidden.dtype)
    charge = functools.partial(_charge, _DISTANCES[kind])
    return losses.chunked_loss(charge, hidden, head, teacher_head, teacher_hidden, weights, chunk)


def _charge(
    divergence: Callable[[Array, Array], Array],
    logits: Array,
    teacher_head: dict[str, Array],
    teacher_hidden: Array,
) -> tuple[Array, Callable[[], Array]]:
    """Returns each token's distance, and a function that gives its gradient by the logits."""
    log_p = jax.nn.log_softmax(losses.logits(teacher_hidden, teacher_head))
    values, pull = jax.vjp(lambda logits: divergence(log_p, jax.nn.log_softmax(logits)), logits)
    return values, lambda: pull(jnp.ones_like(values))[0]


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
