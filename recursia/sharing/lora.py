"""LoRA: shared weights plus a low-rank product of their own in each step, `W + scale A B`.

Relaxed Recursive Transformers (Bae et al. 2024, arXiv 2410.20672), after LoRA (Hu et al. 2021,
arXiv 2106.09685); here `W` is trained too. Every matrix of the named slots has adapters A and B,
one pair for each step of the core unless `varies` says otherwise: those of slot `mlp` are the slot
`mlp_lora`. Prelude and coda share nothing and have no adapters. `B` starts at zero, so that
training starts from the tied model; `recursia.convert.recursive` initialises both from a dense
model instead.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import params, ranges
from recursia.layers.linear import Relaxed
from recursia.layers.norm import zeros
from recursia.params import Params, Spec, normal
from recursia.sharing import matrices
from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Lora(Weights):
    """The slots whose matrices have adapters, and the rank and scale of their products.

    Attributes:
      rank: of the product, at most the smaller width of the matrix.
      slots: the slots of the block whose matrices have adapters.
      scale: factor of the product.
      init_std: standard deviation of `A` at the start.
    """

    rank: int
    slots: tuple[str, ...] = ("attention", "mlp")
    scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "rank")
        ranges.above(0, self, "scale")
        ranges.at_least(0, self, "init_std")
        matrices.check_listed(self.slots)

    def varies(self, block: Params) -> dict[str, str]:
        """Returns how the slots of adapters vary: a pair for each step.

        Raises:
          ValueError: for a slot that the block does not have, or that cannot have adapters.
        """
        matrices.check(block, self.slots)
        return {slot_of(slot): "recursion+block" for slot in self.slots}

    def key_weights(self, block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Returns the adapters of weights that only make keys and values."""
        return tuple((slot_of(slot), name) for slot, name in block if slot in self.slots)

    def specs(self, block: Params) -> Params:
        """Returns the specs of `a` and `b` for every matrix of the slots."""

        def pair(spec: Spec) -> dict[str, Spec]:
            rank, split = self._rank(spec), spec.inputs
            shape, axes = (*spec.shape[:split], rank), (*spec.axes[:split], None)
            a = Spec(shape, axes, normal(self.init_std), inputs=split)
            b = Spec((rank, *spec.shape[split:]), (None, *spec.axes[split:]), zeros)
            return params.mark({"a": a, "b": b}, is_matrix=False)

        return {
            slot_of(slot): {name: pair(spec) for name, spec in matrices.named(block[slot]).items()}
            for slot in self.slots
        }

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with the matrices of the slots as `Relaxed`."""

        def relaxed(slot: str) -> Any:
            pairs = entries[slot_of(slot)]

            def leaf(path: Any, base: Array) -> Array | Relaxed:
                pair = pairs.get(matrices.name(path))
                return base if pair is None else Relaxed(base, pair["a"], pair["b"], self.scale)

            return jax.tree_util.tree_map_with_path(leaf, entries[slot])

        added = tuple(map(slot_of, self.slots))
        others = {slot: tree for slot, tree in entries.items() if slot not in added}
        return {**others, **{slot: relaxed(slot) for slot in self.slots}}

    def flops(self, block: Params, skipped: tuple[tuple[str, str], ...]) -> int:
        """Returns the forward FLOPs of the products with adapters, for one token in one step."""
        return sum(
            2 * spec.products * self._rank(spec) * sum(matrices.widths(spec))
            for slot in self.slots
            for name, spec in matrices.named(block[slot]).items()
            if (slot, name) not in skipped
        )

    def nearest(self, block_slot: Any, missing: Any) -> dict[str, dict[str, Array]]:
        """Returns the adapters whose scaled products are the nearest to the matrices of a slot.

        They hold the largest singular values, computed in float32; at full rank the product is the
        matrix.

        Args:
          block_slot: specs of the slot.
          missing: the matrices to approximate, a tree like those specs.
        """

        def pair(spec: Spec, matrix: Float[Array, "..."]) -> dict[str, Array]:
            rank, split = self._rank(spec), spec.inputs
            u, s, v = jnp.linalg.svd(matrix.reshape(matrices.widths(spec)), full_matrices=False)
            a, b = u[:, :rank], s[:rank, None] * v[:rank] / self.scale
            return {
                "a": a.reshape(*spec.shape[:split], rank),
                "b": b.reshape(rank, *spec.shape[split:]),
            }

        leaves = jax.tree_util.tree_leaves_with_path(missing)
        given = {matrices.name(path): leaf for path, leaf in leaves}
        return {n: pair(spec, given[n]) for n, spec in matrices.named(block_slot).items()}

    def _rank(self, spec: Spec) -> int:
        return min(self.rank, *matrices.widths(spec))


def slot_of(slot: str) -> str:
    """Returns the name of the slot that holds a slot's adapters."""
    return f"{slot}_lora"
