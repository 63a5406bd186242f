"""The standard parameterisation: nothing follows from size but what the settings say."""

import dataclasses

from recursia.parameterisations.parameterisation import Group, Parameterisation, Size
from recursia.params import Scales


@dataclasses.dataclass(frozen=True)
class Standard(Parameterisation):
    """Initial scales, learning rate and weight decay are the settings, at every size."""

    def size(self, embed_dim: int, num_layers: int) -> Size:
        """Returns the base's own size."""
        return Size()

    def row(self, group: Group, size: Size) -> Scales:
        """Returns factors of 1."""
        return Scales()
