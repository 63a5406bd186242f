"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), with RoPE or without positions.

With as many key heads as query heads it is multi-head attention.
"""

import dataclasses

import jax
from jaxtyping import Array

from recursia import ranges
from recursia.layers import norm as norms
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import States
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.layers.norm import rms_norm, zeros
from recursia.layers.rotary import Layout, rotate
from recursia.layers.stretch import Stretch
from recursia.mixers.mixer import Heads, Mixer, Queries
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class GroupedQuery(Mixer):
    """Attention whose query heads share key and value heads in groups.

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of a head; even, for the rotation.
      rope_base: base of the rotary wavelengths; None does not rotate.
      rope_layout: which numbers of a head are rotated as a pair: of its two "halves", or
        "interleaved" neighbours.
      rope_fraction: of a head's width that is rotated, rounded down to an even width.
      has_bias: whether queries and keys have biases.
      has_value_bias: whether values and outputs have biases.
      has_out_bias: whether outputs have one where values do.
      is_gated: whether each head's output is multiplied by the sigmoid of a projection of the
        token's normalised state (Qiu et al. 2025, arXiv 2505.06708).
      head_norm_eps: added to the mean square in RMS norms of each query and key head, before the
        rotation (Henry et al. 2020, arXiv 2010.04245); None has no such norms.
      score_scale: factor of the scores; None is 1 / sqrt(head_dim).
      score_cap: soft cap of the scores, cap * tanh(score / cap) (Gemma Team 2024, arXiv
        2408.00118); 0 has none.
      rope_stretch: factors of the rotary wavelengths, for documents longer than those of training.
      init: initialisation of the matrices.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float | None = 10_000.0
    rope_layout: Layout = "halves"
    rope_fraction: float = 1.0
    has_bias: bool = False
    has_value_bias: bool = False
    has_out_bias: bool = True
    is_gated: bool = False
    head_norm_eps: float | None = None
    score_scale: float | None = None
    score_cap: float = 0.0
    rope_stretch: Stretch = dataclasses.field(default_factory=Stretch)
    init: Init = dataclasses.field(default_factory=Init)

    slots = ("attention",)
    key_weights = tuple(
        ("attention", n) for n in ("key", "key_bias", "key_norm", "value", "value_bias")
    )
    score_weights = tuple(
        ("attention", f"{n}{part}") for n in ("query", "key") for part in ("", "_bias", "_norm")
    )

    def __post_init__(self):
        ranges.at_least(1, self, "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} query heads do not divide over num_kv_heads "
                f"{self.num_kv_heads}; take a multiple of {self.num_kv_heads}"
            )
        ranges.at_least(0, self, "score_cap", *self._given("head_norm_eps"))
        ranges.above(0, self, *self._given("score_scale"))
        if self.rope_base is not None:
            ranges.above(0, self, "rope_base")
            ranges.fraction(self, "rope_fraction")
            if self.head_dim % 2:
                raise ValueError(
                    f"head_dim: got {self.head_dim}, takes an even number (rotary pairs)"
                )

    def _given(self, name: str) -> tuple[str, ...]:
        return () if getattr(self, name) is None else (name,)

    def narrowed(self, part: float) -> "GroupedQuery":
        """Returns the layer with a part of its key heads, at least one, and their query heads."""
        kept = max(1, round(part * self.num_kv_heads))
        heads = kept * (self.num_heads // self.num_kv_heads)
        return dataclasses.replace(self, num_heads=heads, num_kv_heads=kept)

    @property
    def key_width(self) -> int:
        """Width of all keys of a token together, and of all values."""
        return self.num_kv_heads * self.head_dim

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the projections of queries, keys, values and outputs."""
        n, k = self.num_heads, self.num_kv_heads
        read = self.init.read(width, width)
        write = self.init.write(width, self.query_width, num_steps)
        keys = self._input_projection(width, read, k, "kv_heads")
        bias = lambda count, axis: Spec(
            (count, self.head_dim), (axis, None), zeros, is_decayed=False
        )
        weights = {
            "query": self._input_projection(width, read),
            "key": keys,
            "value": keys,
            "out": self._output_projection(width, write),
        }
        if self.is_gated:
            weights["gate"] = weights["query"]
        if self.has_bias:
            weights |= {"query_bias": bias(n, "heads"), "key_bias": bias(k, "kv_heads")}
        if self.has_value_bias:
            weights["value_bias"] = bias(k, "kv_heads")
        if self.has_value_bias and self.has_out_bias:
            weights["out_bias"] = Spec((width,), (None,), zeros, is_decayed=False)
        if self.head_norm_eps is not None:
            norm = norms.specs("rms", self.head_dim)
            weights |= {"query_norm": norm, "key_norm": norm}
        return {"attention": weights}

    def _project(self, params: Params, name: str, x: Array, einsum: str) -> Array:
        weights = params["attention"]
        y = dot(x, weights[name], einsum)
        y = y + weights[f"{name}_bias"] if f"{name}_bias" in weights else y
        if self.head_norm_eps is None or f"{name}_norm" not in weights:
            return y
        return rms_norm(y, weights[f"{name}_norm"], self.head_norm_eps)

    def rotated(self, heads: Heads, context: Context) -> Heads:
        """Returns queries or keys, rotated by the positions of their tokens."""
        if self.rope_base is None:
            return heads
        how = self.rope_base, self.rope_layout, self.rope_fraction, self.rope_stretch
        return rotate(heads, context.positions, *how)

    def queries(self, params: Params, h: States, context: Context) -> Queries:
        """Returns the queries of normalised states."""
        return Queries(self.rotated(self._project(params, "query", h, "d,dnh->nh"), context))

    def keys_values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h` and values of `x`."""
        value, _ = self.values(params, x, h, context)
        key = self._project(params, "key", h, "d,dnh->nh")
        return KeysValues(self.rotated(key, context), value), None

    def values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[Heads, Usage | None]:
        """Returns values of `x`."""
        return self._project(params, "value", x, "d,dnh->nh"), None

    def outputs(
        self, params: Params, mixed: Heads, h: States, queries: Queries, context: Context
    ) -> tuple[States, Usage | None]:
        """Returns the projection of all heads, gated first if the settings say so."""
        if self.is_gated:
            mixed = mixed * jax.nn.sigmoid(dot(h, params["attention"]["gate"], "d,dnh->nh"))
        return self._project(params, "out", mixed, "nh,nhd->d"), None

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        kv = 0 if is_reading else self.key_width
        gate = 2 * width * self.query_width if self.is_gated else 0
        return 4 * width * (self.query_width + kv) + gate + 4 * self.query_width * keys
