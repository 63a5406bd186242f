"""Whose keys and values a step reads.

"own": every recursion makes keys and values of the tokens it processes, and attends among them.
"first_recursion": the first recursion makes them and later ones read them, block by block, so that
a later recursion computes queries of its tokens only. Recursive key-value sharing: Bae et al. 2025,
arXiv 2507.10524.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Sharing of keys and values across recursions.

    Attributes:
      kv_sharing: "own", every recursion makes its own; or "first_recursion", later ones read the
        first one's.
    """

    kv_sharing: Literal["own", "first_recursion"] = "own"

    @property
    def reads_first(self) -> bool:
        """Whether recursions after the first read the first one's keys and values."""
        return self.kv_sharing == "first_recursion"

    def is_reading(self, recursion: int) -> bool:
        """Whether this recursion reads another's keys and values, and makes none."""
        return self.reads_first and recursion > 0
