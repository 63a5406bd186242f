"""The base of parameterisations: how scales of parameters and of their steps follow from size.

A recipe that was tuned on a small model, the base, holds for a larger one if some of its numbers
change with width and depth. Which of them, and by how much, is a table by groups of parameters. A
parameter's group follows from its spec: whether its input and its output features grow with width.
"""

import abc
import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from recursia.params import Scales, Spec

Group = Literal["embedding", "readout", "input", "hidden", "output", "vector"]
GROUPS: dict[Group, str] = {
    "embedding": "tables of the vocabulary",
    "readout": "a head of its own",
    "input": "matrices from few features to the width",
    "hidden": "matrices from width to width, experts too",
    "output": "matrices from the width to few features, such as routers",
    "vector": "norms, biases, and what does not grow",
}
_GROWS = ("embed", "mlp", "heads", "kv_heads")  # axes as long as the model is wide


def group(spec: Spec) -> Group:
    """Returns the group of a parameter."""
    if not spec.is_decayed:
        return "vector"
    if "vocab" in spec.axes:
        return "readout" if spec.is_readout else "embedding"
    names = spec.axes[spec.lead :]
    grows = lambda names: any(name in _GROWS for name in names)
    match grows(names[: spec.inputs]), grows(names[spec.inputs :]):
        case True, True:
            return "hidden"
        case True, False:
            return "output"
        case False, True:
            return "input"
    return "vector"


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a model over that of the base.

    Attributes:
      width: width of the residual stream over the base's.
      depth: block applications over the base's.
    """

    width: float = 1.0
    depth: float = 1.0


@dataclasses.dataclass(frozen=True)
class Parameterisation(abc.ABC):
    """A table from groups of parameters to factors over what the settings of the base say.

    All factors are 1 for the base. Widths grow together: that of the stream, hidden widths, and the
    number of heads, whose own width stays.
    """

    @abc.abstractmethod
    def size(self, embed_dim: int, num_layers: int) -> Size:
        """Returns the size of a model over that of the base."""

    @abc.abstractmethod
    def row(self, group: Group, size: Size) -> Scales:
        """Returns the factors of a group, in blocks and outside."""

    def outside(self, size: Size) -> Scales:
        """Returns further factors of a parameter outside the blocks."""
        return Scales()

    def in_block(self, size: Size, uses: int | float) -> Scales:
        """Returns further factors of a parameter of a block.

        Args:
          size: of the model.
          uses: how often a token that takes every recursion is multiplied by it.
        """
        return Scales()

    def branch(self, size: Size) -> float:
        """Returns the factor of what each branch of a block adds to the residual stream."""
        return 1.0

    def logits(self, size: Size) -> float:
        """Returns the factor of the logits."""
        return 1.0

    @property
    def sets_width(self) -> bool:
        """Whether initial scales follow the width here, so that blocks must leave it alone."""
        return False

    def trained_at(self, num_layers: int) -> "Parameterisation":
        """Returns what a model trained at a depth keeps when it is run at another."""
        return self

    def scaled(self, spec: Spec, size: Size, uses: Int[np.ndarray, "E"] | None = None) -> Spec:
        """Returns the spec of a parameter with its factors.

        Args:
          spec: of the parameter; of a whole bank, if `uses` has several entries.
          size: of the model.
          uses: of each entry of its bank; None stands outside the blocks.
        """
        scales = self.row(group(spec), size)
        own = [self.outside(size)]
        if uses is not None:
            own = [self.in_block(size, count) for count in uses.tolist()]
        gradients = tuple(np.multiply(scales.gradient, each.gradient).item() for each in own)
        scales = Scales(
            scales.init * own[0].init,
            scales.rate * own[0].rate,
            scales.decay * own[0].decay,
            gradients[0] if len(set(gradients)) == 1 else gradients,
        )
        return spec if scales == spec.scales else dataclasses.replace(spec, scales=scales)
