"""Input injection: what each recursion reads besides the states of the last recursion.

`input`: the input of the core. "add" adds it to the states (looped transformers: Yang et al. 2023,
arXiv 2311.12424); "adapter" concatenates both and projects them to the embedding width (Geiping et
al. 2025, arXiv 2502.05171). `position` and `step`: embeddings of the position and of the recursion,
added to the states in every recursion (Universal Transformer: Dehghani et al. 2018, arXiv
1807.03819), as sines and cosines that alternate along the width ("interleaved", the paper), or
sines in the first half and cosines in the second ("halves", the released code), or a learned vector
for each recursion.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.layers.sinusoids import Wave, sinusoids
from recursia.params import Spec, normal


@dataclasses.dataclass(frozen=True)
class Injection:
    """Inputs injected at the start of each recursion.

    Attributes:
      input: how the core's input is injected again: "none", "add" or "adapter".
      position: embedding of a token's position: "none", "interleaved" or "halves".
      step: embedding of the recursion: "none", "interleaved", "halves" or "learned".
      init_std: initial standard deviation of the adapter and the learned vectors.
    """

    input: Literal["none", "add", "adapter"] = "none"
    position: Wave = "none"
    step: Literal["none", "interleaved", "halves", "learned"] = "none"
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(0, self, "init_std")

    def check_depth(self, trained: int, num_recursions: int) -> None:
        """Checks that every recursion has a learned vector.

        Raises:
          ValueError: if there are more recursions than were trained.
        """
        if self.step == "learned" and num_recursions > trained:
            raise ValueError(
                f"depth {num_recursions}: inject.step has learned vectors for {trained} "
                f"recursions only; take at most {trained}"
            )

    def specs(self, num_recursions: int, embed_dim: int) -> dict[str, Spec]:
        """Returns the specs of the adapter and of the learned vectors, if any."""
        specs = {}
        if self.input == "adapter":
            shape, axes = (2 * embed_dim, embed_dim), (None, "embed")
            specs["adapter"] = Spec(shape, axes, normal(self.init_std))
        if self.step == "learned":
            shape = (num_recursions, embed_dim)
            specs["step"] = Spec(shape, (None, "embed"), normal(self.init_std), is_decayed=False)
        return specs

    def by_recursion(self, params: dict[str, Array], num_recursions: int) -> dict[str, Array]:
        """Returns the inputs that differ between recursions, recursions in front."""
        if self.step == "none":
            return {}
        if self.step == "learned":
            return {"step": params["step"]}
        return {"index": jnp.arange(num_recursions)}

    def apply(
        self,
        params: dict[str, Array],
        own: dict[str, Array],
        x: Float[Array, "B T D"],
        context: Context,
    ) -> Float[Array, "B T D"]:
        """Returns the input of a recursion's first block.

        Args:
          params: of `specs`, float32.
          own: this recursion's entry of `by_recursion`.
          x: states after the last recursion.
          context: of the tokens, with their positions and the input of the core.
        """
        core_input = x if context.inputs is None else context.inputs.astype(x.dtype)
        if self.input == "adapter":
            both = jnp.concatenate([x, core_input], axis=-1)
            x = dot(both, params["adapter"].astype(x.dtype), "e,ed->d")
        elif self.input == "add":
            x = x + core_input
        if self.position != "none":
            x = x + sinusoids(context.positions, x.shape[-1], self.position).astype(x.dtype)
        if self.step == "learned":
            x = x + own["step"].astype(x.dtype)
        elif self.step != "none":
            # The paper counts steps from 1, the released code from 0.
            index = own["index"] + int(self.step == "interleaved")
            x = x + sinusoids(index, x.shape[-1], self.step).astype(x.dtype)
        return x

    def flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of injection for one token in one recursion."""
        return 4 * embed_dim**2 if self.input == "adapter" else 0

    @property
    def needs_input(self) -> bool:
        """Whether a recursion reads the input of the core."""
        return self.input != "none"
