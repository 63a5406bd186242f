"""Matrices folded into a memory smaller than they are: chunks of it, used again at hashed places.

Random parameter sharing (STABLE-RPS, Desai & Shrivastava 2024, ICLR). The matrices of some slots,
of all steps of the core one after the other, are one list of n numbers in chunks. Each part of it
that is as long as the memory is the memory, rotated by a hashed number of chunks: each chunk is
used as often as any other, or once more. The first part is not rotated, and with a memory of n
numbers the model is the unshared one. A chunk is a tile of an accelerator's memory.

A matrix is `scale` times its numbers, for all to start with the deviation of their own initializer.
The gradient of a number sums those of its uses over their scales, and the learning rate grows with
the memory's deviation: this can be chosen at will, and only weight decay is relative to it.
"""

import dataclasses
import functools
import math
import zlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import ranges
from recursia.params import Params, Spec, normal
from recursia.sharing import matrices
from recursia.sharing.patterns import Rule, as_table
from recursia.sharing.schedule import Entries
from recursia.sharing.weights import Weights

COLUMNS = 128  # of a tile


@dataclasses.dataclass(frozen=True)
class Fold(Weights):
    """The slots whose matrices are folded, and the memory.

    Attributes:
      ratio: numbers of the memory over those of the matrices, rounded up to whole chunks.
      slots: the slots of the block whose matrices are folded; all have one memory.
      rows: of a chunk, each of 128 numbers.
      has_signs: whether a chunk is multiplied by a hashed sign, by its place in the step.
      init_std: standard deviation of the memory at the start.
      seed: of the hashes.
    """

    ratio: float
    slots: tuple[str, ...] = ("attention", "mlp")
    rows: int = 8
    has_signs: bool = False
    init_std: float = 0.02
    seed: int = 0

    has_matrices: ClassVar[bool] = False

    def __post_init__(self):
        ranges.above(0, self, "ratio")
        ranges.fraction(self, "ratio")
        ranges.at_least(8, self, "rows")
        ranges.between(0, ranges.LARGEST_SEED, self, "seed")
        ranges.above(0, self, "init_std")
        matrices.check_listed(self.slots)

    def varies(self, block: Params) -> dict[str, Rule]:
        """Returns the chunks of each step.

        Raises:
          ValueError: for a slot that the block does not have, or that has no such matrices.
        """
        matrices.check(block, self.slots)
        if zero := [name for _, name, spec in self._listed(block) if not deviation(spec.init)]:
            raise ValueError(f"weights.slots: {zero[0]!r} starts at 0, which no memory holds")
        numbers = sum(math.prod(spec.shape) for _, _, spec in self._listed(block))
        count = -(-numbers // (self.rows * COLUMNS))  # of chunks of a step

        def table(num_recursions: int, num_blocks: int) -> Entries:
            steps = num_recursions * num_blocks
            size = max(1, math.ceil(self.ratio * steps * count - 1e-6))
            part, place = np.divmod(np.arange(steps * count), size)
            offsets = np.array([self._hash("offset", p) * (p > 0) for p in range(part[-1] + 1)])
            chunks = (place + offsets[part]) % size
            return as_table(chunks.reshape(num_recursions, num_blocks, count))

        return {"memory": table}

    def specs(self, block: Params) -> Params:
        """Returns the specs of the slots' other weights, and of one chunk of the memory."""
        found = {slot: matrices.others(block[slot]) for slot in self.slots}
        chunk = Spec(
            (self.rows, COLUMNS),
            (None, "embed"),
            _drawn(self.init_std),
            lr_scale=self._memory_std / self._first_std(block),
            is_matrix=False,
        )
        return {**found, "memory": {"chunks": chunk}}

    def applied(self, block: Params) -> Params:
        """Returns no specs: a token meets the matrices of each step, wherever they are stored."""
        return {}

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with matrices unfolded."""
        chunks = entries["memory"]["chunks"]
        if self.has_signs:
            signs = [1 - 2 * (self._hash("sign", place) % 2) for place in range(len(chunks))]
            chunks = chunks * jnp.asarray(signs, chunks.dtype)[:, None, None]
        numbers, first = chunks.reshape(-1), 0
        found = {slot: tree for slot, tree in entries.items() if slot in self.block}
        made: dict[str, Params] = {slot: {} for slot in self.slots}
        for slot, name, spec in self._listed(self.block):
            last = first + math.prod(spec.shape)
            std = deviation(spec.init)
            scales = std / self._memory_std, self._first_std(self.block) / std
            made[slot][name] = _scaled(numbers[first:last], *scales).reshape(spec.shape)
            first = last
        whole = lambda slot: matrices.joined(self.block[slot], {**entries[slot], **made[slot]})
        return found | {slot: whole(slot) for slot in self.slots}

    def _listed(self, block: Params) -> list[tuple[str, str, Spec]]:
        """Returns the matrices of a step in order, with their slots and names."""
        return [
            (slot, name, spec)
            for slot in self.slots
            for name, spec in matrices.named(block[slot]).items()
        ]

    @property
    def _memory_std(self) -> float:
        return deviation(_drawn(self.init_std))

    def _first_std(self, block: Params) -> float:
        return deviation(self._listed(block)[0][2].init)

    def _hash(self, what: str, place: int) -> int:
        return zlib.crc32(f"{self.seed} {what} {place}".encode())


_drawn = functools.cache(normal)


@functools.lru_cache(256)
def deviation(init: Any) -> float:
    """Returns the root mean square of numbers that an initializer draws, always the same."""
    with jax.ensure_compile_time_eval():
        return float(jnp.sqrt(jnp.square(init(jax.random.key(0), (1 << 16,), jnp.float32)).mean()))


def _scaled(numbers: Array, scale: float, gradient: float) -> Array:
    """Returns `scale * numbers`, whose gradient is multiplied by `gradient` instead."""
    fixed = jax.lax.stop_gradient(numbers)
    # The difference is 0: it has the gradient alone.
    return scale * fixed + gradient * (numbers - fixed)
