"""Mixture of multi-head attention: chosen experts project queries, in front of shared keys.

Tan et al. 2023, arXiv 2310.07096 (after Zhang et al. 2022, arXiv 2210.05144). Where the paper and
the released code differ is said at the option.
"""

import dataclasses

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers import router
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Losses, Report
from recursia.layers.experts import mix, project
from recursia.layers.initial import uniform
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.mixers.mixer import Mixer, Params, Queries
from recursia.params import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class MoMHA(Mixer):
    """Attention experts that read the same keys and values; scores depend on distances.

    Attributes:
      num_heads: key and value heads, and query heads of one attention expert.
      head_dim: width of a head.
      num_attention_experts: each projects queries and what their heads attended to.
      attention_top_k: of them, how many a token takes.
      num_distances: how far behind keys are told apart: 0, 1, ... positions, the last and farther
        as one. The released table has as many for keys ahead, which a causal model never meets.
      attention_mim_weight: of the mutual information between tokens and experts. Published as 0.1
        of a loss that is summed over tokens, so far less of a mean one.
      attention_mim_sign: "intended" adds H(expert | token) - H(expert), as in the paper; "released"
        adds their sum, as its code does, which makes tokens share a few experts.
    """

    num_heads: int
    head_dim: int
    num_attention_experts: int
    attention_top_k: int
    num_distances: int = 64
    attention_mim_weight: float = 0.1
    attention_mim_sign: router.Sign = "intended"

    slots = ("attention", "relative", "attention_experts", "attention_router")
    exact = ("attention_router",)
    key_weights = (("attention", "key"), ("attention", "value"))

    def __post_init__(self):
        ranges.at_least(1, self, "num_heads", "head_dim", "num_distances", "num_attention_experts")
        ranges.choice(self, "attention_top_k", "num_attention_experts")
        ranges.at_least(0, self, "attention_mim_weight")

    @property
    def query_width(self) -> int:
        """Numbers in all queries of a token, of all experts that it takes."""
        return self.attention_top_k * self.key_width

    @property
    def key_width(self) -> int:
        """Numbers in all keys of a token."""
        return self.num_heads * self.head_dim

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns keys and values, the experts and their router, and the scores of distances."""
        d, n, h, e = width, self.num_heads, self.head_dim, self.num_attention_experts
        shared = Spec((d, n, h), ("embed", "kv_heads", None), uniform((3 / (d + n * h)) ** 0.5))
        shape = (n, h, self.num_distances)
        distances = Spec(shape, ("kv_heads", None, None), zeros, is_decayed=False)
        bank = lambda taken, given, *axes: Spec(
            (e, taken, given), ("experts", *axes), uniform(1 / taken)
        )
        return {
            "attention": {"key": shared, "value": shared},
            "relative": {"table": distances},
            "attention_experts": {
                "query": bank(d, n * h, "embed", "heads"),
                "out": bank(n * h, d, "heads", "embed"),
            },
            "attention_router": router.specs(d, e),
        }

    def queries(self, params: Params, h: Float[Array, "B T D"], context: Context) -> Queries:
        """Returns the queries of the chosen experts, with their scores of distances."""
        weights, (batch, length, _) = params["attention_experts"], h.shape
        n, k, width = self.num_heads, self.attention_top_k, self.head_dim
        choice, usage = router.route(params["attention_router"], h, k, context)
        query = project(h, choice.index, weights["query"]).reshape(batch, length, k, n, width)
        # Those that read one key head side by side, as `attend` takes them: [B T N k H].
        query = query.swapaxes(2, 3)
        by_head = jax.vmap(lambda q, table: dot(q, table, "h,hr->r"), (2, 0), 2)
        relative = by_head(query / width**0.5, params["relative"]["table"])
        flat = lambda y: y.reshape(batch, length, n * k, -1)
        return Queries(flat(query), flat(relative), choice, usage)

    def keys_values(
        self, params: Params, x: Float[Array, "B T D"], h: Float[Array, "B T D"], context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h` and values of `x`."""
        weights = params["attention"]
        key, value = (dot(y, weights[n], "d,dnh->nh") for n, y in (("key", h), ("value", x)))
        return KeysValues(key, value), None

    def outputs(
        self,
        params: Params,
        mixed: Float[Array, "B T N H"],
        h: Float[Array, "B T D"],
        queries: Queries,
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Usage | None]:
        """Returns the weighted sum of what the chosen experts' heads attended to."""
        (batch, length, _), choice = h.shape, queries.choice
        n, k, width = self.num_heads, self.attention_top_k, self.head_dim
        mixed = mixed.reshape(batch, length, n, k, width).swapaxes(2, 3)
        mixed = mixed.reshape(batch, length, k, -1)
        bank = params["attention_experts"]["out"]
        y = project(mixed, choice.index[..., None], bank)[..., 0, :]
        return mix(y, choice.weight), queries.usage

    def report(self, made: Usage | None, written: Usage | None) -> Report:
        """Returns how the router was used."""
        return {"attention_router": written}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the loss of the router, and the mean entropies it is made of, in nats."""
        loss, metrics = router.mim(reports, self.attention_mim_sign)
        return {"attention_mim": self.attention_mim_weight * loss}, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the mutual information, a function of means over the batch."""
        return ("attention_mim_weight",) if self.attention_mim_weight else ()

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        made = 0 if is_reading else 4 * width * self.key_width
        chosen = self.query_width * (4 * width + 2 * self.num_distances + 4 * keys)
        return router.flops(width, self.num_attention_experts) + made + chosen
