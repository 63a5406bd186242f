"""CompleteP: a recipe that holds when a model is made wider, deeper, or recurs more often."""

import dataclasses

from recursia import ranges
from recursia.parameterisations.mup import MuP
from recursia.parameterisations.parameterisation import Group, Size
from recursia.params import Scales


@dataclasses.dataclass(frozen=True)
class CompleteP(MuP):
    """MuP, and branches of blocks multiplied by l^-exponent (Dey et al. 2025, arXiv 2505.01618).

    With l the block applications over the base's: the parameters of blocks learn faster by
    l^(exponent - 1), so that with exponent 1, Euler's method with steps of size 1 / l, nothing but
    the multiplier follows from depth; 1/2 is that of Bordelon et al. 2023 (arXiv 2309.16620), for
    blocks that share nothing. Weight decay of matrices grows as their rate falls, and Adam's eps
    follows the size of gradients: a block of which l times as many applications are the same sums l
    times as many terms.

    Attributes:
      base_layers: block applications at which the recipe was tuned, at most the model's.
      exponent: of the multiplier, from 0 to 1.
      has_one_eps: whether embeddings, head and final norm have the l^-exponent of blocks in Adam's
        eps too, as in the released code before it was corrected (arXiv 2512.22382).
      layers: block applications that count; 0 counts the model's `num_layers`. A model that is run
        at another depth than it was trained at keeps those of training.
    """

    base_layers: int
    exponent: float = 1.0
    has_one_eps: bool = False
    layers: int = 0

    def __post_init__(self):
        super().__post_init__()
        ranges.between(1, ranges.MOST_LAYERS, self, "base_layers")
        ranges.between(0, ranges.MOST_LAYERS, self, "layers")
        ranges.fraction(self, "exponent")

    def size(self, embed_dim: int, num_layers: int) -> Size:
        """Returns width and depth over the base's."""
        layers = self.layers or num_layers
        if layers < self.base_layers:
            raise ValueError(
                f"parameterisation.base_layers: got {self.base_layers}, and the model applies "
                f"{layers} blocks; take a base that is no deeper"
            )
        return Size(embed_dim / self.base_width, layers / self.base_layers)

    def row(self, group: Group, size: Size) -> Scales:
        """Returns the factors of a group."""
        m, scales = size.width, super().row(group, size)
        is_output = group == "output" and self.scales_routers
        if group == "hidden" or is_output:
            scales = dataclasses.replace(scales, decay=m)
        # The gradient of a matrix whose entries are smaller by m is larger by m.
        return dataclasses.replace(scales, gradient=1.0 if is_output else 1 / m)

    def outside(self, size: Size) -> Scales:
        """Returns the factor of eps, where it is that of blocks."""
        return Scales(gradient=size.depth**-self.exponent if self.has_one_eps else 1.0)

    def in_block(self, size: Size, uses: int | float) -> Scales:
        """Returns the factors of l, and of the terms that a gradient sums.

        The base shares as the model does: there a parameter is used `uses / l` times, at least
        once.
        """
        terms = max(1.0, min(uses, size.depth))
        gradient = size.depth**-self.exponent * terms
        return Scales(rate=size.depth ** (self.exponent - 1), gradient=gradient)

    def branch(self, size: Size) -> float:
        """Returns l^-exponent."""
        return size.depth**-self.exponent

    def trained_at(self, num_layers: int) -> "CompleteP":
        """Returns the same with the block applications of training."""
        return dataclasses.replace(self, layers=self.layers or num_layers)
