"""Distillation: how far a student's predictions, and states of its layers, are from a teacher's.

The distances between next-token distributions are those of Recursive Transformers (Bae et al. 2024,
arXiv 2410.20672), at a temperature (Hinton et al. 2015, arXiv 1503.02531). With the teacher's p and
the student's q:

    forward_kl  -sum p log q, the cross-entropy, which differs from the divergence by p's entropy
    reverse_kl  sum q log (q / p)
    js          (sum p log (p / m) + sum q log (q / m)) / 2, with m = (p + q) / 2
    tvd         sum |p - q| / 2

The distance between states x of the student and t of the teacher is |x - t|^2 / |t|^2.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia import losses, model, settings
from recursia.architecture import Model
from recursia.params import Params

TeacherOutput = tuple[Float[Array, "B T D"], dict[str, Array]]  # hidden states and the head


class Lesson(NamedTuple):
    """What a teacher says of a batch, without gradient.

    Attributes:
      predictions: its hidden states and its head.
      states: those after the layers that are learnt from; None if there are none.
    """

    predictions: TeacherOutput
    states: Float[Array, "K B T D"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model whose predictions are learnt from.

    Attributes:
      model: its configuration.
      params: its float32 parameters.
      layers: those whose states are learnt from.
    """

    model: Model
    params: Params
    layers: tuple[int, ...] = ()

    def read(self, batch: Mapping[str, Array]) -> Lesson:
        """Returns what it says of a batch in eval mode."""
        out = model.apply(
            self.params,
            batch["tokens"],
            self.model,
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            mode="eval",
            keeps_states=bool(self.layers),
        )
        head = self.model.embed.head(self.params["embed"])
        states = None if out.states is None else out.states[np.array(self.layers)]
        return Lesson(*jax.lax.stop_gradient(((out.hidden, head), states)))


def state_distance(
    ours: Float[Array, "K B T D"], theirs: Float[Array, "K B T D"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Returns the weighted sum of the tokens' distances between states, each a mean over layers.

    Args:
      ours: states of the student's layers.
      theirs: of the teacher's, one for each.
      weights: of each token's distance.
    """
    ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
    size = jnp.maximum((theirs**2).sum(-1), jnp.finfo(jnp.float32).tiny)
    return (weights * (((ours - theirs) ** 2).sum(-1) / size).mean(0)).sum()


def distance(
    kind: settings.Distance,
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    teacher: TeacherOutput,
    weights: Float[Array, "B T"],
    chunk: int,
    temperature: float = 1.0,
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
      temperature: divides the logits of both; the distance is multiplied by its square, so that
        gradients stay as large.
    """
    teacher_hidden, teacher_head = teacher
    teacher_head = losses.cast(teacher_head, teacher_hidden.dtype)
    charge = functools.partial(_charge, _DISTANCES[kind], temperature)
    return losses.chunked_loss(charge, hidden, head, teacher_head, teacher_hidden, weights, chunk)


def _charge(
    divergence: Callable[[Array, Array], Array],
    temperature: float,
    logits: Array,
    teacher_head: dict[str, Array],
    teacher_hidden: Array,
) -> tuple[Array, Callable[[], Array]]:
    """Returns each token's distance, and a function that gives its gradient by the logits."""
    log_odds = lambda logits: jax.nn.log_softmax(logits / temperature)
    log_p = log_odds(losses.logits(teacher_hidden, teacher_head))
    far = lambda logits: temperature**2 * divergence(log_p, log_odds(logits))
    values, pull = jax.vjp(far, logits)
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
