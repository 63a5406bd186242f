"""In which shapes rows of tokens are computed, and on which devices."""

import dataclasses
import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from recursia import sharding
from recursia.architecture import Model
from recursia.data.loader import rows_here
from recursia.depth.policy import Mode

SHORTEST = 32  # tokens of the shortest padded row
FINER = 512  # from here on, lengths of rows have one between those that double


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how requests are computed.

    Attributes:
      mode: "eval" as published, "causal" as decoding decides.
      mesh: devices over which rows are split.
      rules: how.
      context_length: tokens that the model is given at most; the latest are kept.
      batch_tokens: tokens, padding included, of the rows computed at a time.
    """

    mode: Mode
    mesh: Mesh
    rules: sharding.Rules
    context_length: int
    batch_tokens: int

    @property
    def by_rows(self) -> NamedSharding:
        """How arrays with a leading axis of rows lie over the devices."""
        return NamedSharding(self.mesh, sharding.partition(("batch",), self.rules))

    def rows_at_a_time(self, length: int, wanted: int) -> int:
        """Returns the rows of a batch: a power of two, or what `batch_tokens` allows.

        Args:
          length: of each, padded.
          wanted: rows that there are.
        """
        axes = sharding.splitting("batch", self.rules)
        ways = math.prod(self.mesh.shape[axis] for axis in axes)
        most = max(self.batch_tokens // length, 1)
        return -(-min(most, power(2, wanted)) // ways) * ways

    def put(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Returns arrays of rows over the devices; each process brings what its own hold."""
        count = len(next(iter(arrays.values())))
        here = list(rows_here(self.by_rows, (count, 1)))
        lay = functools.partial(jax.make_array_from_process_local_data, self.by_rows)
        return {name: lay(value[here]) for name, value in arrays.items()}


def power(base: int, least: int) -> int:
    """Returns the first power of `base` from `least` on."""
    found = 1
    while found < least:
        found *= base
    return found


def padded(length: int, most: int) -> int:
    """Returns to how many tokens a row is padded: 32, 64, 128, 256, 384, 512, 768, ... `most`."""
    size = max(power(2, length), SHORTEST)
    size = size * 3 // 4 if size >= FINER and length <= size * 3 // 4 else size
    return min(size, most)


def allowed(config: Model, length: int, most: int) -> int:
    """Returns to how many tokens a model's row is padded: `padded`, if the depth policy splits it.

    Otherwise it is `most`.
    """
    size = padded(length, most)
    try:
        config.depth.check_length(size)
    except ValueError:
        return most
    return size
