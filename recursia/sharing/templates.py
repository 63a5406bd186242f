"""Matrices as sums of templates: slices of one flat store for all matrices of a slot.

Neural parameter allocation search (Plummer et al. 2020, arXiv 2006.10598). The matrices of slot
`mlp`, of all steps of the core and of whatever shapes, are made of the numbers of one store, the
slot `mlp_store`: W = sum_k a_k T_k, where T_k is the k-th template, a slice as long as the matrix.
Matrices of one size take the next templates in turn, those of another size begin where the first
would end, and after the last number comes the first again. The coefficients, slot
`mlp_coefficients`, are private to each step and start orthogonal where templates are shared. A
store that is too small for a matrix is refused: nothing is interpolated. Its bank holds pieces as
long as the greatest common divisor of all sizes.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia import ranges
from recursia.params import Params, Spec, normal
from recursia.sharing import matrices
from recursia.sharing.atoms import combined
from recursia.sharing.patterns import Rule, as_table
from recursia.sharing.schedule import Entries
from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Templates(Weights):
    """The slots whose matrices are sums of templates, and the size of their stores.

    Attributes:
      budget: numbers of a store over those of the matrices that it makes, in all steps of the core.
      num_templates: templates of each matrix.
      slots: the slots of the block whose matrices are made of templates; each has one store.
    """

    budget: float
    num_templates: int = 2
    slots: tuple[str, ...] = ("attention", "mlp")

    has_matrices: ClassVar[bool] = False

    def __post_init__(self):
        ranges.above(0, self, "budget")
        ranges.between(0, ranges.MOST_LAYERS, self, "budget")
        ranges.at_least(1, self, "num_templates")
        matrices.check_listed(self.slots)

    @property
    def exact(self) -> tuple[str, ...]:
        """The coefficients, whose rounding error would be common to all entries of a matrix."""
        return tuple(map(_coefficients, self.slots))

    def varies(self, block: Params) -> dict[str, Rule]:
        """Returns how stores and coefficients vary: one store for the core.

        Raises:
          ValueError: for a slot that the block does not have, or that has no such matrices.
        """
        matrices.check(block, self.slots)
        tables = {_store(slot): self._table(slot, block[slot]) for slot in self.slots}
        return {**tables, **dict.fromkeys(self.exact, "recursion+block")}

    def _layout(self, slot: str, tree: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pieces of each step's matrices [N C], and how often they were taken [N M].

        Raises:
          ValueError: if the store has too few numbers for the templates of a matrix.
        """
        sizes, piece = _sizes(tree)
        pieces = int(self.budget * steps * sum(sizes) / piece + 1e-6)  # 0.3 * 10 is 3
        wide = [self.num_templates * size // piece for size in sizes]
        if pieces < max(wide):
            raise ValueError(
                f"weights.budget: the store of {slot!r} has {pieces * piece} numbers, and the "
                f"{self.num_templates} templates of a matrix have {max(wide) * piece}; raise it, "
                "or lower weights.num_templates"
            )
        cells, ranks = [], []
        for place, (size, width) in enumerate(zip(sizes, wide, strict=True)):
            turn = np.arange(steps) * sizes.count(size) + sizes[:place].count(size)
            others = [s for s in sizes if sizes.index(s) < sizes.index(size)]  # that go before
            start = steps * sum(others) // piece + turn % (pieces // width) * width
            cells.append((start[:, None] + np.arange(width)) % pieces)
            ranks.append(turn // (pieces // width))
        return np.concatenate(cells, axis=1), np.stack(ranks, axis=1)

    def _table(self, slot: str, tree: Any) -> Rule:
        def table(num_recursions: int, num_blocks: int) -> Entries:
            cells, _ = self._layout(slot, tree, num_recursions * num_blocks)
            used = np.searchsorted(np.unique(cells), cells)  # pieces in no template are not stored
            return as_table(used.reshape(num_recursions, num_blocks, -1))

        return table

    def specs(self, block: Params) -> Params:
        """Returns the specs of the other weights, of a piece of each store, and of coefficients."""
        found: Params = {}
        for slot in self.slots:
            own = matrices.named(block[slot])
            piece, init = _sizes(block[slot])[1], next(iter(own.values())).init
            found[slot] = matrices.others(block[slot])
            found[_store(slot)] = {"pieces": Spec((piece,), ("embed",), init, is_matrix=False)}
            shape = (len(own), self.num_templates)
            together = functools.partial(self._orthogonal, slot, block[slot])
            rows = Spec(shape, (None, None), normal(1), is_decayed=False, together=together)
            found[_coefficients(slot)] = {"rows": rows}
        return found

    def applied(self, block: Params) -> Params:
        """Returns no specs: a token meets one matrix in each step, however many its templates."""
        return {}

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with matrices summed of their templates."""
        found = {slot: tree for slot, tree in entries.items() if slot in self.block}
        for slot in self.slots:
            numbers = entries[_store(slot)]["pieces"].reshape(-1)
            rows, first, made = entries[_coefficients(slot)]["rows"], 0, {}
            for place, (name, spec) in enumerate(matrices.named(self.block[slot]).items()):
                last = first + self.num_templates * math.prod(spec.shape)
                parts = numbers[first:last].reshape(self.num_templates, *spec.shape)
                made[name], first = combined(rows[place], parts), last
            found[slot] = matrices.joined(self.block[slot], {**entries[slot], **made})
        return found

    def _orthogonal(
        self, slot: str, tree: Any, key: Array, shape: tuple[int, ...], dtype: Any
    ) -> Float[Array, "N M K"]:
        """Returns the coefficients of all steps: unit vectors, orthogonal where templates are."""
        _, ranks = self._layout(slot, tree, shape[0])
        if (most := self.num_templates) == 1:
            return jnp.ones(shape, dtype)
        bases = jax.random.orthogonal(key, most, (1 + int(ranks.max()) // most,), dtype)
        return bases.reshape(-1, most)[ranks]


def _sizes(tree: Any) -> tuple[list[int], int]:
    """Returns the numbers of each matrix of a slot, and their greatest common divisor."""
    sizes = [math.prod(spec.shape) for spec in matrices.named(tree).values()]
    return sizes, math.gcd(*sizes)


def _store(slot: str) -> str:
    return f"{slot}_store"


def _coefficients(slot: str) -> str:
    return f"{slot}_coefficients"
