"""Matrices as linear combinations of shared atoms, one combination for each step.

Matrix atom sharing (MASA): W_step = sum_a c[step, a] D[a], for each of the named matrices. The core
has one set of atoms unless `varies` says otherwise. They replace the matrices of their slot: those
of slot `attention` are the slot `attention_atoms`, and their coefficients the slot
`attention_coefficients`. A step's matrix exists while the step runs. The published coefficients
come from a small network that is dropped after training; here they are parameters themselves.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.params import Params, Spec, normal
from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Atoms(Weights):
    """The matrices that are combinations of atoms, and the number of atoms.

    Attributes:
      num_atoms: atoms of each matrix; with a third of the number of steps and private output
        matrices, attention has half the parameters.
      slot: the slot of the block that holds the matrices.
      names: the matrices in that slot.
    """

    num_atoms: int
    slot: str = "attention"
    names: tuple[str, ...] = ("query", "key", "value")

    def __post_init__(self):
        ranges.at_least(1, self, "num_atoms")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names: got {self.names}, takes at least one, each once")

    @property
    def exact(self) -> tuple[str, ...]:
        """The coefficients, whose rounding error would be common to all entries of a matrix."""
        return (self._coefficients,)

    @property
    def _atoms(self) -> str:
        return slot_of(self.slot)

    @property
    def _coefficients(self) -> str:
        return coefficients_of(self.slot)

    def varies(self, block: Params) -> dict[str, str]:
        """Returns how the slots of atoms and coefficients vary: one set of atoms for the core.

        Raises:
          ValueError: for a slot or a matrix that the block does not have.
        """
        if not isinstance(block.get(self.slot), dict):
            names = ", ".join(slot for slot, tree in block.items() if isinstance(tree, dict))
            raise ValueError(f"weights.slot: the block has no {self.slot!r}; it has {names}")
        for name in self.names:
            spec = block[self.slot].get(name)
            if not isinstance(spec, Spec) or len(spec.shape) < 2 or not spec.is_decayed:
                known = ", ".join(n for n, s in block[self.slot].items() if _is_matrix(s))
                raise ValueError(
                    f"weights.names: slot {self.slot!r} has no matrix {name!r}; it has {known}"
                )
        return {self._atoms: "one", self._coefficients: "recursion+block"}

    def specs(self, block: Params) -> Params:
        """Returns the specs of the slot's other weights, of the atoms, and of the coefficients."""
        slot, std = block[self.slot], self.num_atoms**-0.5  # matrices start with the atoms' scale
        coefficients = Spec((self.num_atoms,), (None,), normal(std), is_decayed=False)
        return {
            self.slot: {name: spec for name, spec in slot.items() if name not in self.names},
            self._atoms: {
                name: slot[name].stack((self.num_atoms,), (None,)) for name in self.names
            },
            self._coefficients: dict.fromkeys(self.names, coefficients),
        }

    def applied(self, block: Params) -> Params:
        """Returns no specs: a token meets one matrix in each step, however many its atoms."""
        return {}

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with matrices combined of their atoms."""
        atoms, coefficients = entries[self._atoms], entries[self._coefficients]
        matrices = {name: combined(coefficients[name], atoms[name]) for name in self.names}
        others = {s: tree for s, tree in entries.items() if s not in (self._atoms, *self.exact)}
        return {**others, self.slot: {**entries[self.slot], **matrices}}


def slot_of(slot: str) -> str:
    """Returns the slot of the atoms of a slot's matrices."""
    return f"{slot}_atoms"


def coefficients_of(slot: str) -> str:
    """Returns the slot of the coefficients of a slot's matrices."""
    return f"{slot}_coefficients"


def _is_matrix(spec: object) -> bool:
    return isinstance(spec, Spec) and spec.is_decayed and len(spec.shape) > 1


def combined(coefficients: Float[Array, "A"], atoms: Float[Array, "A ..."]) -> Array:
    """Returns the weighted sum of atoms, summed in float32 and rounded to their dtype."""
    shape = (-1,) + (1,) * (atoms.ndim - 1)
    wide = coefficients.reshape(shape) * atoms.astype(jnp.float32)
    return wide.sum(0).astype(atoms.dtype)
