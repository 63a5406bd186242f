"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), rotary or without positions.

With as many key heads as query heads it is multi-head attention.
"""

import dataclasses

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.layers.norm import rms_norm, rms_specs, zeros
from recursia.layers.rotary import Layout, rotate
from recursia.layers.stretch import Stretch
from recursia.mixers.mixer import Mixer, Params, Queries
from recursia.params import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class GroupedQuery(Mixer):
    """Queries in groups that read one key head each.

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of a head; even, for the rotation.
      rope_base: base of the rotary wavelengths; None does not rotate.
      rope_layout: which numbers of a head are rotated as a pair: of its two "halves", or
        "interleaved" neighbours.
      rope_fraction: of a head, how much is rotated, rounded down to an even width.
      has_bias: whether queries and keys have biases.
      has_value_bias: whether values and outputs have biases.
      has_out_bias: whether outputs have one where values do.
      is_gated: whether what a head read is multiplied by the sigmoid of a projection of the token's
        normalised state (Qiu et al. 2025, arXiv 2505.06708).
      head_norm_eps: added to the mean square in norms of each query and key head, before they are
        rotated (Henry et al. 2020, arXiv 2010.04245); None has no such norms.
      score_scale: of the scores; None is one over the root of `head_dim`.
      score_cap: bound of the scores, by the hyperbolic tangent (Gemma Team 2024, arXiv
        2408.00118); 0 has none.
      rope_stretch: of the rotary wavelengths, for documents longer than those of training.
      init: scales of its matrices at the start.
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

    @property
    def query_width(self) -> int:
        """Numbers in all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers in all keys of a token."""
        return self.num_kv_heads * self.head_dim

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns the projections of queries, keys, values and outputs."""
        d, n, k, h = width, self.num_heads, self.num_kv_heads, self.head_dim
        init = self.init.read(d, d)
        keys = Spec((d, k, h), ("embed", "kv_heads", None), init)
        bias = lambda count, axis: Spec((count, h), (axis, None), zeros, is_decayed=False)
        write = self.init.write(d, n * h, num_steps)
        weights = {
            "query": Spec((d, n, h), ("embed", "heads", None), init),
            "key": keys,
            "value": keys,
            "out": Spec((n, h, d), ("heads", None, "embed"), write, inputs=2),
        }
        if self.is_gated:
            weights["gate"] = weights["query"]
        if self.has_bias:
            weights |= {"query_bias": bias(n, "heads"), "key_bias": bias(k, "kv_heads")}
        if self.has_value_bias:
            weights["value_bias"] = bias(k, "kv_heads")
        if self.has_value_bias and self.has_out_bias:
            weights["out_bias"] = Spec((d,), (None,), zeros, is_decayed=False)
        if self.head_norm_eps is not None:
            weights |= {"query_norm": rms_specs(h), "key_norm": rms_specs(h)}
        return {"attention": weights}

    def _project(self, params: Params, name: str, x: Array, einsum: str) -> Array:
        weights = params["attention"]
        y = dot(x, weights[name], einsum)
        y = y + weights[f"{name}_bias"] if f"{name}_bias" in weights else y
        if self.head_norm_eps is None or f"{name}_norm" not in weights:
            return y
        return rms_norm(y, weights[f"{name}_norm"], self.head_norm_eps)

    def rotated(self, heads: Float[Array, "B T N H"], context: Context) -> Float[Array, "B T N H"]:
        """Returns queries or keys, rotated by the positions of their tokens."""
        if self.rope_base is None:
            return heads
        how = self.rope_base, self.rope_layout, self.rope_fraction, self.rope_stretch
        return rotate(heads, context.positions, *how)

    def queries(self, params: Params, h: Float[Array, "B T D"], context: Context) -> Queries:
        """Returns the queries of normalised states."""
        return Queries(self.rotated(self._project(params, "query", h, "d,dnh->nh"), context))

    def keys_values(
        self, params: Params, x: Float[Array, "B T D"], h: Float[Array, "B T D"], context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h` and values of `x`."""
        value = self._project(params, "value", x, "d,dnh->nh")
        key = self._project(params, "key", h, "d,dnh->nh")
        return KeysValues(self.rotated(key, context), value), None

    def outputs(
        self,
        params: Params,
        mixed: Float[Array, "B T N H"],
        h: Float[Array, "B T D"],
        queries: Queries,
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Usage | None]:
        """Returns the heads, gated if so, projected to the stream."""
        if self.is_gated:
            mixed = mixed * jax.nn.sigmoid(dot(h, params["attention"]["gate"], "d,dnh->nh"))
        return self._project(params, "out", mixed, "nh,nhd->d"), None

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        kv = 0 if is_reading else self.key_width
        gate = 2 * width * self.query_width if self.is_gated else 0
        return 4 * width * (self.query_width + kv) + gate + 4 * self.query_width * keys
