"""LoRA with a rank of its own in each recursion: `W + scale (rank / r) A B` with rank r.

A pair of columns and rows, a product of rank 1, is an entry of the slot of adapters, and a step has
as many as its rank. So that all steps run the same program, each multiplies by `rank` pairs, the
largest number: of r pairs, each as often as r divides it. Their sum has the factor rank / r, as
LoRA divides by the rank itself (Hu et al. 2021, arXiv 2106.09685); FLOPs are those of the largest
rank in all steps.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from recursia import params
from recursia.layers.norm import zeros
from recursia.params import Params, Spec, normal
from recursia.sharing import lora, matrices
from recursia.sharing.patterns import Rule
from recursia.sharing.schedule import Entries


@dataclasses.dataclass(frozen=True)
class GradedLora(lora.Lora):
    """Adapters whose rank grows with the recursion; `rank` is the largest, `scale` its factor.

    Attributes:
      ranks: of the recursions; each divides `rank`, which is one of them. Empty: `rank` in the last
        recursion, and in each before it the largest divisor of at most half of the next.
    """

    ranks: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        wrong = [rank for rank in self.ranks if rank < 1 or self.rank % rank]
        if wrong or (self.ranks and max(self.ranks) != self.rank):
            raise ValueError(
                f"ranks: got {(wrong or [max(self.ranks)])[0]} of rank {self.rank}, takes divisors "
                "of it, and once itself"
            )

    def varies(self, block: Params) -> dict[str, Rule]:
        """Returns how the slots of adapters vary: pairs of its own for each step.

        Raises:
          ValueError: for a slot that cannot have adapters, or a matrix narrower than the rank.
        """
        for slot in super().varies(block):
            base = slot.removesuffix(lora.slot_of(""))
            for name, spec in matrices.named(block[base]).items():
                if (least := min(matrices.widths(spec))) < self.rank:
                    raise ValueError(
                        f"weights.rank: {self.rank} is more than the width {least} of {base}.{name}"
                        f"; take at most {least}"
                    )
        return {lora.slot_of(slot): self._table for slot in self.slots}

    def _table(self, num_recursions: int, num_blocks: int) -> Entries:
        """Returns the pairs of each step, all with the same number: few are named several times."""
        first, rows = 0, []
        for rank in self._ranks(num_recursions):
            starts = range(first, first + num_blocks * rank, rank)
            cell = lambda start: tuple(range(start, start + rank)) * (self.rank // rank)  # noqa: B023
            rows.append(tuple(map(cell, starts)))
            first = starts.stop
        return tuple(rows)

    def _ranks(self, num_recursions: int) -> list[int]:
        if self.ranks and len(self.ranks) != num_recursions:
            raise ValueError(
                f"weights.ranks: got {len(self.ranks)} for {num_recursions} recursions; give one "
                "each"
            )
        found = list(self.ranks) or [self.rank]
        while len(found) < num_recursions:
            halves = range(max(found[0] // 2, 1), 0, -1)
            found.insert(0, next(rank for rank in halves if self.rank % rank == 0))
        return found

    def specs(self, block: Params) -> Params:
        """Returns the specs of a pair for every matrix of the slots."""

        def pair(spec: Spec) -> dict[str, Spec]:
            split = spec.inputs
            a = Spec(spec.shape[:split], spec.axes[:split], normal(self.init_std))
            b = Spec(spec.shape[split:], spec.axes[split:], zeros)
            return params.mark({"a": a, "b": b}, is_matrix=False)

        named = {lora.slot_of(slot): matrices.named(block[slot]) for slot in self.slots}
        return {slot: {name: pair(s) for name, s in specs.items()} for slot, specs in named.items()}

    def applied(self, block: Params) -> Params:
        """Returns the specs of adapters of the largest rank, by which every step multiplies."""
        return super().specs(block)

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with the matrices of the slots as `Relaxed`."""
        side = lambda pair: {"a": jnp.moveaxis(pair["a"], 0, -1), "b": pair["b"]}
        added = {
            slot: {name: side(pair) for name, pair in entries[slot].items()}
            for slot in map(lora.slot_of, self.slots)
        }
        return super().bind({**entries, **added})

    def nearest(self, block_slot: Any, missing: Any) -> dict[str, dict[str, Array]]:
        """Refuses: which ranks a decomposition should have is not known.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "weights: adapters of 'graded_lora' cannot be decomposed from a dense model; take "
            "--lora_init=zero, or weights.kind 'lora'"
        )
