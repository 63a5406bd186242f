"""Matrices as products of tensors: a central one that is shared, auxiliary ones of each step.

Sharing of the central tensor of matrix product operators (Liu et al. 2023, arXiv 2303.16753). The
central tensor holds most of the parameters. It takes the place of its matrix and is shared as the
slot is; the other tensors, for slot `mlp` those of slot `mlp_auxiliary`, are private to each step.
Prelude and coda share nothing and keep their matrices.

Auxiliary tensors start orthogonal and alike in all steps, which is the tied model. A matrix with
independent normal entries, split with these tensors, has a central tensor with independent normal
entries of the same deviation: it is therefore drawn as the matrix would be, which then starts with
its usual variance. Where bonds are cut it is drawn larger by the root of what is cut.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from recursia import ranges
from recursia.params import Initializer, Params, Spec
from recursia.sharing import matrices, tensors
from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Mpo(Weights):
    """The slots whose matrices are products of tensors, and the sizes of these tensors.

    Attributes:
      slots: the slots of the block whose matrices are products of tensors.
      num_factors: tensors of each matrix; the one in the middle is shared.
      max_bond: size to which every bond is cut; 0 cuts none, and every matrix is such a product.
    """

    slots: tuple[str, ...] = ("attention", "mlp")
    num_factors: int = 5
    max_bond: int = 0

    has_matrices: ClassVar[bool] = False

    def __post_init__(self):
        ranges.at_least(2, self, "num_factors")
        ranges.at_least(0, self, "max_bond")
        matrices.check_listed(self.slots)

    @property
    def centre(self) -> int:
        """The number of the shared tensor, from 0."""
        return self.num_factors // 2

    def shapes(self, spec: Spec) -> list[tensors.Shape]:
        """Returns the shapes of a matrix's tensors."""
        inputs, outputs = (tensors.factors(w, self.num_factors) for w in matrices.widths(spec))
        return tensors.shapes(inputs, outputs, self.max_bond)

    def varies(self, block: Params) -> dict[str, str]:
        """Returns how the slots of auxiliary tensors vary: one set for each step.

        Raises:
          ValueError: for a slot that the block does not have, or that has no such matrices.
        """
        matrices.check(block, self.slots)
        return {auxiliary(slot): "recursion+block" for slot in self.slots}

    def key_weights(self, block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Returns the auxiliary tensors of weights that only make keys and values."""
        return tuple((auxiliary(slot), name) for slot, name in block if slot in self.slots)

    def specs(self, block: Params) -> Params:
        """Returns the specs of the slots with central tensors, and of the auxiliary tensors."""
        found: Params = {}
        for slot in self.slots:
            own = matrices.named(block[slot])
            found[slot] = matrices.replaced(block[slot], own, lambda _, spec: self._central(spec))
            found[auxiliary(slot)] = {name: self._auxiliary(spec) for name, spec in own.items()}
        return found

    def applied(self, block: Params) -> Params:
        """Returns no specs: a token meets one matrix in each step, whatever its tensors."""
        return {}

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with matrices multiplied of their tensors."""

        def matrices_of(slot: str) -> Any:
            specs, own = matrices.named(self.block[slot]), entries[auxiliary(slot)]

            def rebuilt(name: str, central: Array) -> Array:
                by_number = {**own[name], str(self.centre): central}
                ordered = [by_number[str(k)] for k in range(self.num_factors)]
                return tensors.rebuilt(ordered).reshape(specs[name].shape)

            return matrices.replaced(entries[slot], specs, rebuilt)

        others = {slot: tree for slot, tree in entries.items() if slot in self.block}
        return others | {slot: matrices_of(slot) for slot in self.slots}

    def making_flops(self, block: Params) -> int:
        """Returns the forward FLOPs that multiply the tensors of one step's matrices."""
        found = [spec for slot in self.slots for spec in matrices.named(block[slot]).values()]
        return sum(tensors.product_flops(self.shapes(spec)) for spec in found)

    def split(self, spec: Spec, matrix: Array) -> dict[str, Array]:
        """Returns the tensors of a dense matrix by their number, as text."""
        inputs, outputs = ([shape[axis] for shape in self.shapes(spec)] for axis in (1, 2))
        dense = matrix.reshape(matrices.widths(spec))
        parts = tensors.split(dense, inputs, outputs, self.max_bond)
        return {str(number): part for number, part in enumerate(parts)}

    def _central(self, spec: Spec) -> Spec:
        shapes, at = self.shapes(spec), self.centre
        before, _, _, after = shapes[at]
        sides = [i * j for _, i, j, _ in (*shapes[:at], *shapes[at + 1 :])]
        scale = math.sqrt(math.prod(sides) / (before * after))  # 1 unless bonds are cut
        init: Initializer = lambda key, shape, dtype: scale * spec.init(key, shape, dtype)
        return Spec(shapes[at], ("embed", None, None, None), init, is_matrix=False)

    def _auxiliary(self, spec: Spec) -> dict[str, Spec]:
        def one(shape: tensors.Shape, is_left: bool) -> Spec:
            init: Initializer = lambda key, _, dtype: jnp.asarray(
                tensors.orthogonal(shape, is_left), dtype
            )
            return Spec(shape, (None,) * 4, init, is_matrix=False)

        shapes = enumerate(self.shapes(spec))
        return {str(k): one(shape, k < self.centre) for k, shape in shapes if k != self.centre}


def auxiliary(slot: str) -> str:
    """Returns the name of the slot that holds the auxiliary tensors of a slot's matrices."""
    return f"{slot}_auxiliary"
