"""Weights as they are in their bank: every step that shares an entry uses the same numbers."""

import dataclasses

from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Tied(Weights):
    """Nothing to choose."""
