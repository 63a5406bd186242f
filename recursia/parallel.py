"""Parallel copies of a model on the same tokens, which share all weights but a prefix in each step.

Parallel scaling (Chen et al. 2025, arXiv 2505.10475) calls them streams: the width of a computation
grows, as its depth does in recursion, and the number of parameters hardly. Every step has learned
keys and values for each copy, its prefix: without a position, in front of the tokens, seen by all
tokens of all documents. After the final norm, the states h_p of a token's P copies are averaged,

    a = softmax(silu([h_1 ... h_P] W_1 + b_1) W_2 + b_2)        over P
    h = sum over p of ((1 - smoothing) a_p + smoothing / P) h_p

and the head reads h. One copy has neither prefix nor average: it is the model itself.

The copies of a text are neighbouring rows of the batch. Outside of the stacks, where a row is a
text, states of a token are those of its copies side by side.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.depth.policy import Aux
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.mixers.mixer import PREFIX, Mixer
from recursia.params import Params, Spec, normal


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Parallel copies of the model, prelude and coda included; not of embedding and head.

    Attributes:
      num_copies: of the model; 1 is the model itself.
      prefix_tokens: learned keys, and values, of each copy in each step.
      smoothing: part of the average over copies that is uniform, in [0, 1].
      init_std: initial standard deviation of the prefixes and of the matrices of the average.
    """

    num_copies: int = 1
    prefix_tokens: int = 48
    smoothing: float = 0.01
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "num_copies", "prefix_tokens")
        ranges.at_least(0, self, "init_std")
        ranges.fraction(self, "smoothing")

    @property
    def slots(self) -> tuple[str, ...]:
        """The slot of the prefixes, which each step has for itself unless `varies` says else."""
        return () if self.num_copies == 1 else (PREFIX,)

    @property
    def num_keys(self) -> int:
        """Keys that a query meets besides those of tokens."""
        return 0 if self.num_copies == 1 else self.prefix_tokens

    def prefix_specs(self, mixer: Mixer, width: int) -> Params:
        """Returns the specs of a step's prefixes, by slot, in a stream of this width."""
        if self.num_copies == 1:
            return {}
        return mixer.prefix_specs(width, self.num_copies, self.prefix_tokens, normal(self.init_std))

    def specs(self, width: int) -> Params:
        """Returns the specs of the average, of states of this width."""
        if self.num_copies == 1:
            return {}
        matrix, count = normal(self.init_std), self.num_copies
        bias = lambda size: Spec((size,), (None,), zeros, is_decayed=False)
        return {
            "hidden": Spec((count, width, width), (None, "embed", "mlp"), matrix, inputs=2),
            "hidden_bias": bias(width),
            "score": Spec((width, count), ("mlp", None), matrix, is_matrix=False),
            "score_bias": bias(count),
        }

    def by_row(self, x: Array) -> Array:
        """Returns an array by text [B ...] by rows of the stacks, the same for each copy."""
        return x if self.num_copies == 1 else jnp.repeat(x, self.num_copies, axis=0)

    def joined(self, x: Float[Array, "*L C T D"]) -> Float[Array, "*L B T E"]:
        """Returns the states of a token's copies side by side."""
        if self.num_copies == 1:
            return x
        *lead, _, length, width = x.shape
        x = x.reshape(*lead, -1, self.num_copies, length, width)
        return jnp.moveaxis(x, -3, -2).reshape(*lead, -1, length, self.num_copies * width)

    def split(self, x: Float[Array, "B T E"]) -> Float[Array, "C T D"]:
        """Returns the rows of which `joined` made these states."""
        if self.num_copies == 1:
            return x
        batch, length, _ = x.shape
        x = jnp.moveaxis(x.reshape(batch, length, self.num_copies, -1), 2, 1)
        return x.reshape(batch * self.num_copies, length, -1)

    def by_text(self, aux: Aux) -> Aux:
        """Returns what a depth policy tells of rows, of texts; copies take the same recursions."""
        if self.num_copies == 1:
            return aux
        first = lambda leaf: None if leaf is None else leaf[..., :: self.num_copies, :]
        return dataclasses.replace(
            aux,
            depth_used=first(aux.depth_used),
            states=None if aux.states is None else self.joined(aux.states),
            exit_weights=first(aux.exit_weights),
        )

    def shares(self, params: Params, x: Float[Array, "C T D"]) -> Float[Array, "B T P"]:
        """Returns the weights of a token's copies in the average, in float32.

        Args:
          params: of `specs`.
          x: normalised states.
        """
        count, cast = self.num_copies, lambda name: params[name].astype(x.dtype)
        together = jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 2)
        hidden = dot(together, cast("hidden"), "pd,pde->e") + cast("hidden_bias")
        score = dot(jax.nn.silu(hidden), cast("score"), "e,ep->p") + cast("score_bias")
        shares = jax.nn.softmax(score.astype(jnp.float32), axis=-1)
        return (1 - self.smoothing) * shares + self.smoothing / count

    def average(self, params: Params, x: Float[Array, "C T D"]) -> Float[Array, "B T D"]:
        """Returns the average of the states of a token's copies; the arguments as of `shares`."""
        if self.num_copies == 1:
            return x
        shares = jnp.moveaxis(self.shares(params, x), -1, 1)[..., None]  # [B P T 1]
        rows = x.reshape(-1, self.num_copies, *x.shape[1:])
        return (shares * rows.astype(jnp.float32)).sum(1).astype(x.dtype)

    def flops(self, width: int) -> int:
        """Returns the forward FLOPs of the scores of one token."""
        count = self.num_copies
        return 0 if count == 1 else 2 * count * width * (width + 1)
