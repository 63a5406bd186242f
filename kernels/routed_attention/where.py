"""What attention reads, and the attention mask: which keys a query sees."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

UNSEEN = float(np.finfo(np.float32).min)  # the score of a masked key


class Where(NamedTuple):
    """Positions and segments of the queries and the keys.

    A query sees the keys of its segment whose position is not after its own. Positions and segments
    need not be sorted and may repeat.

    Attributes:
      query_positions: positions of the queries; None is 0, 1, 2, ...
      key_positions: positions of the keys; None is 0, 1, 2, ...
      query_segments: segment ids of the queries; None is 0 for all.
      key_segments: segment ids of the keys; None is those of the queries, whose tokens the keys
        then are of.
      plan: pairs of blocks that kernels visit for this mask, if they were listed before; see
        `attention_plan`.
    """

    query_positions: Int[Array, "B T"] | None = None
    key_positions: Int[Array, "B S"] | None = None
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    plan: Any = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Positions and segments, of which none may be None."""
        return tuple(x for x in self[:4] if x is not None)

    def written_out(self, batch: int, length: int, key_length: int) -> "Where":
        """Returns the same mask with int32 arrays of positions and segments, without a plan."""

        def each(given: Array | None, default: Array) -> Array:
            given = default if given is None else given
            return jnp.broadcast_to(given, (batch, len(default))).astype(jnp.int32)

        its = self.query_segments if self.key_segments is None else self.key_segments
        return Where(
            each(self.query_positions, jnp.arange(length)),
            each(self.key_positions, jnp.arange(key_length)),
            each(self.query_segments, jnp.zeros(length)),
            each(its, jnp.zeros(key_length)),
        )


def visible(where: Where, window: int = 0) -> Bool[Array, "*B T S"]:
    """Returns the attention mask, of positions and segments none of which is None."""
    query_positions, key_positions, query_segments, key_segments = where.arrays
    queries, keys = query_positions[..., :, None], key_positions[..., None, :]
    is_near = queries >= keys  # a difference would overflow for padding
    is_near = is_near & (queries - keys < window) if window else is_near
    return is_near & (query_segments[..., :, None] == key_segments[..., None, :])


class Inputs(NamedTuple):
    """What attention reads."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K W"]
    where: Where
    relative: Float[Array, "B T N R"] | None = None

    def written_out(self) -> Where:
        """Returns where queries and keys stand, with no position or segment left out."""
        batch, length, *_ = self.query.shape
        return self.where.written_out(batch, length, self.key.shape[1])


class Results(NamedTuple):
    """What attention makes.

    Attributes:
      out: output of each query.
      lse: log-sum-exp of each query's scores, in float32; +inf for a query that sees no key, so
        that its probabilities exp(score - lse) are zero.
    """

    out: Float[Array, "B T N W"]
    lse: Float[Array, "B N T"]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How products of queries and keys become scores.

    Attributes:
      scale: factor of the products.
      window: number of positions up to its own that a query sees; 0 is no bound.
      cap: soft cap, cap * tanh(score / cap); 0 has none.
    """

    scale: float
    window: int = 0
    cap: float = 0.0


def decline(given: Inputs, scoring: Scoring, dtypes: tuple[Any, ...], widest: int) -> None:
    """Raises NotImplementedError for what a kernel does not take: no kernel adds to its scores."""
    query = given.query
    if given.relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if scoring.cap:
        raise NotImplementedError("it caps no scores")
    if query.dtype not in dtypes:
        takes = " and ".join(jnp.dtype(each).name for each in dtypes)
        raise NotImplementedError(f"it takes {takes}, not {query.dtype}")
    if given.value.shape[3] != query.shape[3]:
        values, keys = given.value.shape[3], query.shape[3]
        raise NotImplementedError(f"it takes values as wide as keys, not {values} and {keys}")
    if query.shape[3] > widest:
        raise NotImplementedError(f"it takes heads of at most {widest}, not {query.shape[3]}")


def by_key_head(x: Float[Array, "B T N H"], groups: int) -> Float[Array, "B K G T H"]:
    """Returns heads grouped by the key head that they read."""
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def by_token(x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
    """Returns the inverse of `by_key_head`."""
    batch, groups, each, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * each, width)
