"""Learning rates by layer: the standard parameterisation, whose rates alone follow from width."""

import dataclasses

from recursia import ranges
from recursia.parameterisations.parameterisation import Group, Parameterisation, Size
from recursia.params import Scales


@dataclasses.dataclass(frozen=True)
class LayerWise(Parameterisation):
    """Rates of each group of parameters as powers of width (Everett et al. 2024, 2407.05872).

    Initial scales are those of the settings, and the factors of the learning rate are m^-exponent,
    with m the width over the base's. The defaults are for Adam where steps align with activations;
    1/2 is for steps that do not.

    Attributes:
      base_width: width of the residual stream at which the recipe was tuned.
      embedding: exponent of tables, and of matrices from few features to the width.
      hidden: exponent of matrices from width to width.
      readout: exponent of an untied head, and of matrices from the width to few features.
    """

    base_width: int
    embedding: float = 0.0
    hidden: float = 1.0
    readout: float = 1.0

    def __post_init__(self):
        ranges.at_least(1, self, "base_width")
        ranges.between(-2, 2, self, "embedding", "hidden", "readout")

    def size(self, embed_dim: int, num_layers: int) -> Size:
        """Returns the width over the base's."""
        return Size(embed_dim / self.base_width)

    def row(self, group: Group, size: Size) -> Scales:
        """Returns the factor of the rate of a group."""
        exponents = {"embedding": self.embedding, "input": self.embedding, "hidden": self.hidden}
        exponents |= {"readout": self.readout, "output": self.readout}
        return Scales(rate=size.width ** -exponents.get(group, 0.0))
