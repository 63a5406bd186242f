"""Keys in front of all tokens, which every query sees: a call of their own, joined with theirs.

Softmax over both is a mean of the two results, weighted by the sums of their exponentials. Given
the output and the log-sum-exp of both together, the backward pass of either call has its part of
the gradient. So whatever runs without such keys runs with them, libraries' kernels too.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from .where import Inputs, Results, Scoring, Where


def inputs(
    query: Float[Array, "B T N H"], key: Float[Array, "B P K H"], value: Float[Array, "B P K W"]
) -> Inputs:
    """Returns what attention to these keys alone reads: none of them is masked."""
    zeros = lambda x: jnp.zeros(x.shape[:2], jnp.int32)
    return Inputs(query, key, value, Where(zeros(query), zeros(key)))


def scoring(own: Scoring) -> Scoring:
    """Returns how the keys are scored where those of tokens are scored by `own`: by no window."""
    return dataclasses.replace(own, window=0)


def joined(tokens: Results, before: Results) -> Results:
    """Returns attention to the keys of both.

    Args:
      tokens: attention to the keys of tokens, of which a query may see none.
      before: attention to the keys in front.
    """
    seen = jnp.where(jnp.isposinf(tokens.lse), -jnp.inf, tokens.lse)
    lse = jnp.logaddexp(seen, before.lse)

    def part(own: Array, out: Array) -> Array:
        share = jnp.exp(own - lse).swapaxes(1, 2)[..., None]  # [B T N 1]
        return share * out.astype(jnp.float32)

    out = part(seen, tokens.out) + part(before.lse, before.out)
    return Results(out.astype(tokens.out.dtype), lse)
