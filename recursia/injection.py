"""Input injection: what each recursion takes in besides the state that the last one left.

`input`: the state that the core was entered with. "add" adds it (looped transformers: Yang et al.
2023, arXiv 2311.12424); "adapter" joins it to the state and maps both back to the width (Geiping et
al. 2025, arXiv 2502.05171). `position` and `step`: coordinates in the text and in depth, added to
the state at every recursion (Universal Transformer: Dehghani et al. 2018, arXiv 1807.03819), as
sinusoids that alternate along the width ("interleaved", the paper), or sines in the first half and
cosines in the second ("halves", the released code), or a learned vector for each recursion.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.params import Spec, normal

Wave = Literal["none", "interleaved", "halves"]


@dataclasses.dataclass(frozen=True)
class Injection:
    """What is injected at the start of each recursion.

    Attributes:
      input: how the core's input comes in again: "none", "add" or "adapter".
      position: a token's place: "none", "interleaved" or "halves".
      step: the recursion: "none", "interleaved", "halves" or "learned".
      init_std: standard deviation of the adapter and the learned vectors at the start.
    """

    input: Literal["none", "add", "adapter"] = "none"
    position: Wave = "none"
    step: Literal["none", "interleaved", "halves", "learned"] = "none"
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(0, self, "init_std")

    def check_depth(self, trained: int, num_recursions: int) -> None:
        """Refuses recursions that have no learned vector.

        Raises:
          ValueError: if there are more than were trained.
        """
        if self.step == "learned" and num_recursions > trained:
            raise ValueError(
                f"depth {num_recursions}: inject.step has learned vectors for {trained} "
                f"recursions only; take at most {trained}"
            )

    def specs(self, num_recursions: int, embed_dim: int) -> dict[str, Spec]:
        """Returns the adapter, and a vector for each recursion where they are learned."""
        found = {}
        if self.input == "adapter":
            shape, axes = (2 * embed_dim, embed_dim), (None, "embed")
            found["adapter"] = Spec(shape, axes, normal(self.init_std))
        if self.step == "learned":
            shape = (num_recursions, embed_dim)
            found["step"] = Spec(shape, (None, "embed"), normal(self.init_std), is_decayed=False)
        return found

    def by_recursion(self, params: dict[str, Array], num_recursions: int) -> dict[str, Array]:
        """Returns what differs between recursions, one entry each along the leading axis."""
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
        """Returns the state that the blocks of a recursion start from.

        Args:
          params: of `specs`, float32.
          own: this recursion's entry of `by_recursion`.
          x: the state that the last recursion left.
          context: where the tokens stand, and the states that the core was entered with.
        """
        core_input = x if context.inputs is None else context.inputs.astype(x.dtype)
        if self.input == "adapter":
            both = jnp.concatenate([x, core_input], axis=-1)
            x = dot(both, params["adapter"].astype(x.dtype), "e,ed->d")
        elif self.input == "add":
            x = x + core_input
        if self.position != "none":
            x = x + waves(context.positions, x.shape[-1], self.position).astype(x.dtype)
        if self.step == "learned":
            x = x + own["step"].astype(x.dtype)
        elif self.step != "none":
            # The paper counts steps from 1, the released code from 0.
            index = own["index"] + (self.step == "interleaved")
            x = x + waves(index, x.shape[-1], self.step).astype(x.dtype)
        return x

    def flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of one token in one recursion."""
        return 4 * embed_dim**2 if self.input == "adapter" else 0

    @property
    def needs_input(self) -> bool:
        """Returns whether a recursion reads the state that the core was entered with."""
        return self.input != "none"


def waves(index: Int[Array, "*B"], embed_dim: int, layout: Wave) -> Float[Array, "*B D"]:
    """Returns sines and cosines of an index at wavelengths from 2 pi to 20,000 pi, in float32."""
    half = embed_dim // 2
    # The released code spreads its wavelengths so that the last is exactly the longest.
    last = half if layout == "interleaved" else max(half - 1, 1)
    rates = jnp.exp(-math.log(10_000) / last * jnp.arange(half, dtype=jnp.float32))
    angle = index[..., None].astype(jnp.float32) * rates
    pair = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1 if layout == "interleaved" else -2)
    flat = pair.reshape(*index.shape, 2 * half)
    return jnp.pad(flat, [(0, 0)] * index.ndim + [(0, embed_dim % 2)])
