"""Mixture of multi-head attention: experts of queries and outputs, with shared keys and values.

Tan et al. 2023, arXiv 2310.07096 (after Zhang et al. 2022, arXiv 2210.05144). Each option says
where the paper and the released code differ.
"""

import dataclasses

import jax

from recursia import ranges
from recursia.layers import mim_router
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Losses, Report, States
from recursia.layers.experts import mix, project
from recursia.layers.initial import uniform
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.mixers.mixer import Heads, Mixer, Queries
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class MoMHA(Mixer):
    """Attention experts that read the same keys and values, with a relative position bias.

    Attributes:
      num_heads: key and value heads, and query heads of one attention expert.
      head_dim: width of a head.
      num_attention_experts: experts; each projects queries, and the outputs of their heads.
      attention_top_k: experts that a token takes.
      num_distances: entries of the relative position bias, for keys 0, 1, ... positions behind
        the query; the last also serves all keys further behind. The released table has as many for
        keys ahead, which causal attention never reads.
      attention_mim_weight: of the mutual information between tokens and experts. Published as 0.1
        of a loss that is summed over tokens, so far less than 0.1 of this mean over tokens.
      attention_mim_sign: "intended" adds H(expert | token) - H(expert), as in the paper; "released"
        adds their sum, as the released code does, which makes tokens share a few experts.
    """

    num_heads: int
    head_dim: int
    num_attention_experts: int
    attention_top_k: int
    num_distances: int = 64
    attention_mim_weight: float = 0.1
    attention_mim_sign: mim_router.Sign = "intended"

    slots = ("attention", "relative", "attention_experts", "attention_router")
    exact = ("attention_router",)
    has_relative = True
    key_weights = (("attention", "key"), ("attention", "value"))

    def __post_init__(self):
        ranges.at_least(1, self, "num_heads", "head_dim", "num_distances", "num_attention_experts")
        ranges.choice(self, "attention_top_k", "num_attention_experts")
        ranges.at_least(0, self, "attention_mim_weight")

    @property
    def query_width(self) -> int:
        """Width of all queries of a token together, of all experts that it takes."""
        return self.attention_top_k * self.key_width

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns keys and values, the experts and their router, and the relative position bias."""
        d, e, m = width, self.num_attention_experts, self.key_width
        shared = self._input_projection(d, uniform((3 / (d + m)) ** 0.5), axis="kv_heads")
        shape = (self.num_heads, self.head_dim, self.num_distances)
        distances = Spec(shape, ("kv_heads", None, None), zeros, is_decayed=False)
        return {
            "attention": {"key": shared, "value": shared},
            "relative": {"table": distances},
            "attention_experts": {
                "query": Spec((e, d, m), ("experts", "embed", "heads"), uniform(1 / d)),
                "out": Spec((e, m, d), ("experts", "heads", "embed"), uniform(1 / m)),
            },
            "attention_router": mim_router.specs(d, e),
        }

    def queries(self, params: Params, h: States, context: Context) -> Queries:
        """Returns the queries of the chosen experts, with their relative position bias."""
        weights, (batch, length, _) = params["attention_experts"], h.shape
        n, k, width = self.num_heads, self.attention_top_k, self.head_dim
        choice, usage = mim_router.route(params["attention_router"], h, k, context)
        query = project(h, choice.index, weights["query"]).reshape(batch, length, k, n, width)
        # Queries of one key head are adjacent, as `attend` takes them: [B T N k H].
        query = query.swapaxes(2, 3)
        by_head = jax.vmap(lambda q, table: dot(q, table, "h,hr->r"), (2, 0), 2)
        relative = by_head(query / width**0.5, params["relative"]["table"])
        flat = lambda y: y.reshape(batch, length, n * k, -1)
        return Queries(flat(query), flat(relative), choice, usage)

    def keys_values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h` and values of `x`."""
        weights = params["attention"]
        key, value = (dot(y, weights[n], "d,dnh->nh") for n, y in (("key", h), ("value", x)))
        return KeysValues(key, value), None

    def outputs(
        self, params: Params, mixed: Heads, h: States, queries: Queries, context: Context
    ) -> tuple[States, Usage | None]:
        """Returns the weighted sum of the chosen experts' projections of their heads."""
        (batch, length, _), choice = h.shape, queries.choice
        assert choice is not None  # `queries` makes one
        n, k, width = self.num_heads, self.attention_top_k, self.head_dim
        mixed = mixed.reshape(batch, length, n, k, width).swapaxes(2, 3)
        mixed = mixed.reshape(batch, length, k, -1)
        bank = params["attention_experts"]["out"]
        y = project(mixed, choice.index[..., None], bank)[..., 0, :]
        return mix(y, choice.weight), queries.usage

    def report(self, values: Usage | None, outputs: Usage | None) -> Report:
        """Returns the statistics of the one router."""
        return {"attention_router": outputs}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the mutual-information loss, and its two mean entropies in nats."""
        loss, metrics = mim_router.loss(reports, self.attention_mim_sign)
        return {"attention_mim": self.attention_mim_weight * loss}, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the mutual information, a function of means over the batch."""
        return ("attention_mim_weight",) if self.attention_mim_weight else ()

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        keys_values = 0 if is_reading else 4 * width * self.key_width
        experts = self.query_width * (4 * width + 2 * self.num_distances + 4 * keys)
        return mim_router.flops(width, self.num_attention_experts) + keys_values + experts
