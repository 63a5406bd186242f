"""Tied weights: every step that uses a bank entry uses the same weights."""

import dataclasses

from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Tied(Weights):
    """Nothing to choose."""
