"""Maximal update parameterisation (muP): a recipe that holds when a model is made wider."""

import dataclasses

from recursia import ranges
from recursia.parameterisations.parameterisation import Group, Parameterisation, Size
from recursia.params import Scales


@dataclasses.dataclass(frozen=True)
class MuP(Parameterisation):
    """Scales by width for Adam (Yang et al. 2022, arXiv 2203.03466), experts too (2508.09752).

    With m the width over the base's: hidden matrices start smaller by sqrt(m) and learn slower by
    m; matrices to few features, such as routers, start and learn smaller by m; logits are divided
    by m. Weight decay and eps are as set, as in nanoGPT-mup. Attention scores should be divided by
    the width of a head and not by its root: set `score_scale`.

    Attributes:
      base_width: width of the residual stream at which the recipe was tuned.
      scales_routers: whether matrices to few features, such as routers, have factors; without, they
        are as set at every width, as in nanoGPT-mup.
    """

    base_width: int
    scales_routers: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        ranges.at_least(1, self, "base_width")

    @property
    def sets_width(self) -> bool:
        """Yes."""
        return True

    def size(self, embed_dim: int, num_layers: int) -> Size:
        """Returns the width over the base's."""
        return Size(embed_dim / self.base_width)

    def row(self, group: Group, size: Size) -> Scales:
        """Returns the factors of a group."""
        m = size.width
        match group:
            case "hidden":
                return Scales(init=m**-0.5, rate=1 / m)
            case "output" if self.scales_routers:
                return Scales(init=1 / m, rate=1 / m)
        return Scales()

    def logits(self, size: Size) -> float:
        """Returns 1 / m."""
        return 1 / size.width
