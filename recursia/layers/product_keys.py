"""Product keys: the best of n^2 keys, each a pair of two halves, for the scores of 2 n of them.

Lample et al. 2019 (arXiv 1907.05242). A key is a pair of half keys and its score the sum of theirs,
so that the best pairs are among the pairs of the best halves: the search is exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.layers import balance
from recursia.layers.attention import Context
from recursia.layers.branch import Report
from recursia.layers.initial import uniform
from recursia.layers.linear import Weight, dot
from recursia.layers.norm import zeros
from recursia.params import Initializer, Leaf, Params, Spec, normal


class Found(NamedTuple):
    """The best keys of each head's query.

    Attributes:
      index: of each key among all, `first half * n + second half`.
      score: float32, the largest first.
    """

    index: Int[Array, "B T N K"]
    score: Float[Array, "B T N K"]


@struct.dataclass
class Reads:
    """What each token reads, at its place in the row; zeros where it takes no step."""

    index: Leaf  # [B T N K] int32
    share: Leaf  # [B T N K] float32, of the head's read
    num_keys: int = struct.field(pytree_node=False)  # that there are


def check(config: Any) -> None:
    """Refuses sizes of a feed-forward that cannot be searched.

    Raises:
      ValueError: with the field, its value and what it takes.
    """
    ranges.at_least(1, config, "num_keys", "key_dim", "retrieval_heads")
    ranges.choice(config, "top_k", "num_keys")
    ranges.above(0, config, "values_rate")
    if config.key_dim % 2:
        raise ValueError(f"key_dim: got {config.key_dim}, takes an even number (two halves)")


def table(num_keys: int, width: int, rate: float) -> Spec:
    """Returns the spec of a value for each key; decay would shrink those that no token reads."""
    return Spec(
        (num_keys**2, width),
        ("mlp", "embed"),
        normal(width**-0.5),
        is_decayed=False,
        lr_scale=rate,
        is_matrix=False,
        is_table=True,
    )


def specs(width: int, sizes: tuple[int, int, int], read: Initializer) -> Params:
    """Returns the projection of queries with its bias, and the half keys of each head.

    Args:
      width: of the states that queries are made of.
      sizes: heads, half keys of each half of a head, and width of a whole key.
      read: initializer of the projection.
    """
    heads, n, k = sizes
    half, keys = k // 2, uniform(k**-0.5)
    return {
        "query": Spec((width, heads, 2, half), ("embed", None, None, None), read, is_matrix=False),
        "query_bias": Spec((heads, 2, half), (None, None, None), zeros, is_decayed=False),
        "keys": Spec((heads, 2, n, half), (None, None, None, None), keys, is_matrix=False),
    }


def search(
    h: Float[Array, "B T D"],
    query: Float[Array, "D N S H"] | Weight,
    query_bias: Float[Array, "N S H"],
    keys: Float[Array, "N S M H"],
    top_k: int,
) -> Found:
    """Returns the `top_k` best keys of each token and head.

    Args:
      h: states that queries are made of.
      query: projection, float32 as are the others.
      query_bias: of the queries.
      keys: half keys.
      top_k: at most the number of half keys.
    """
    queries = dot(h.astype(jnp.float32), query, "d,dnsh->nsh") + query_bias
    scores = jnp.einsum("btnsh,nsmh->btnsm", queries, keys)
    best, index = jax.lax.top_k(scores, top_k)
    sums = best[..., 0, :, None] + best[..., 1, None, :]
    score, place = jax.lax.top_k(sums.reshape(*sums.shape[:-2], -1), top_k)
    take = lambda half, at: jnp.take_along_axis(index[..., half, :], at, -1)
    whole = take(0, place // top_k) * keys.shape[-2] + take(1, place % top_k)
    return Found(whole, score)


def report(found: Found, num_keys: int, context: Context) -> Report:
    """Returns the reads of each token where each is reported by itself, and nothing otherwise.

    Args:
      found: by `search`.
      num_keys: half keys of each half of a head.
      context: of the tokens.
    """
    if (places := context.places) is None:
        return {}
    place = lambda values: balance.apart(values, context.is_live, places)
    reads = Reads(place(found.index), place(jax.nn.softmax(found.score)), num_keys**2)
    return {"memory_keys": reads}


def search_flops(width: int, sizes: tuple[int, int, int]) -> int:
    """Returns the forward FLOPs of one token's search; the arguments are those of `specs`."""
    heads, n, k = sizes
    return 2 * heads * k * (width + n)
