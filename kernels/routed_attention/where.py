"""Where queries and keys stand: which keys a query sees."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Where(NamedTuple):
    """Positions and segments of the queries and the keys.

    A query sees the keys of its segment whose position is not later than its own. Neither need be
    sorted, and both may repeat.

    Attributes:
      query_positions: None: 0, 1, 2, ...
      key_positions: None: 0, 1, 2, ...
      query_segments: None: all are of segment 0.
      key_segments: None: all are of segment 0.
    """

    query_positions: Int[Array, "B T"] | None = None
    key_positions: Int[Array, "B S"] | None = None
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """The fields, once they are written out: none is None."""
        found = [x for x in self if x is not None]
        query_positions, key_positions, query_segments, key_segments = found
        return query_positions, key_positions, query_segments, key_segments

    def written_out(self, batch: int, length: int, key_length: int) -> "Where":
        """Returns the same with an int32 array in the place of every None."""

        def positions(given: Array | None, count: int) -> Array:
            given = jnp.arange(count) if given is None else given
            return jnp.broadcast_to(given, (batch, count)).astype(jnp.int32)

        def segments(given: Array | None, count: int) -> Array:
            given = jnp.zeros(count) if given is None else given
            return jnp.broadcast_to(given, (batch, count)).astype(jnp.int32)

        return Where(
            positions(self.query_positions, length),
            positions(self.key_positions, key_length),
            segments(self.query_segments, length),
            segments(self.key_segments, key_length),
        )


def visible(where: Where, window: int = 0) -> Bool[Array, "*B T S"]:
    """Returns which keys each query sees, of positions and segments that are written out.

    Args:
      where: they stand.
      window: how many positions behind a query it sees, its own included; 0 is no bound.
    """
    query_positions, key_positions, query_segments, key_segments = where.arrays
    queries, keys = query_positions[..., :, None], key_positions[..., None, :]
    is_near = queries >= keys  # a difference would overflow where blocks are filled up
    is_near = is_near & (queries - keys < window) if window else is_near
    return is_near & (query_segments[..., :, None] == key_segments[..., None, :])
