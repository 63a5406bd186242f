"""SwitchHead: a mixture of experts of value and output projections in each attention head.

Csordás et al. 2023, arXiv 2312.07987, as in MoEUT (Csordás et al. 2024, arXiv 2405.16039).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from recursia import ranges
from recursia.layers import balance, experts, router
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Losses, Report, States
from recursia.layers.linear import dot
from recursia.layers.rotary import rotate
from recursia.mixers.mixer import Heads, Mixer, Queries
from recursia.params import Params, Spec, normal


@dataclasses.dataclass(frozen=True)
class SwitchHead(Mixer):
    """Attention whose heads have experts; initial variances fall with the effective depth.

    Attributes:
      num_heads: attention heads.
      head_dim: width of a head.
      num_attention_experts: value and output projections of each head; with 1, each head's output
        has a gate instead of a choice.
      attention_top_k: experts that a token takes in each head, for values and again for outputs.
      rope_fraction: of a head's width that is rotated, rounded down to an even width.
      rope_base: base of the rotary wavelengths.
      attention_entropy_weight: of the loss that spreads the tokens of a sequence over the experts.
    """

    num_heads: int
    head_dim: int
    num_attention_experts: int = 8
    attention_top_k: int = 2
    rope_fraction: float = 0.5
    rope_base: float = 10_000.0
    attention_entropy_weight: float = 0.001

    slots = ("attention", "attention_experts", "attention_router")
    exact = ("attention_router",)  # a rounded logit would choose another expert
    key_weights = (
        ("attention", "key"),
        ("attention_experts", "value"),
        ("attention_router", "value"),
    )
    score_weights = (("attention", "query"), ("attention", "key"))

    def __post_init__(self):
        ranges.at_least(1, self, "num_heads", "head_dim", "num_attention_experts")
        ranges.at_least(1, self, "attention_top_k")
        if self.num_attention_experts != 1:
            ranges.choice(self, "attention_top_k", "num_attention_experts")
        ranges.fraction(self, "rope_fraction")
        ranges.above(0, self, "rope_base")
        ranges.at_least(0, self, "attention_entropy_weight")

    @property
    def has_attention_experts(self) -> bool:
        """Whether values and outputs have experts to choose from."""
        return self.num_attention_experts > 1

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns queries and keys, the experts of values and outputs, and their routers."""
        d, h, n, a = width, self.head_dim, self.num_heads, self.num_attention_experts
        scale = math.sqrt(2 / num_steps)
        std, std_out = scale / math.sqrt(d), scale / math.sqrt(n * h)
        heads = self._input_projection(d, normal(std))
        equal = experts.equal_norms(std, is_by_expert=True)
        if self.has_attention_experts:
            value = Spec((n * a, d, h), ("experts", "embed", None), normal(std))
            out = Spec((n * a, h, d), ("experts", None, "embed"), normal(std_out))
            by_head = Spec((d, n, a), ("embed", "heads", None), equal, is_matrix=False)
            routers = {"value": by_head, "out": by_head}
        else:
            value = heads
            out = self._output_projection(d, normal(std_out))
            routers = {"out": Spec((d, n), ("embed", "heads"), equal, is_matrix=False)}
        return {
            "attention": {"query": heads, "key": heads},
            "attention_experts": {"value": value, "out": out},
            "attention_router": routers,
        }

    def _rotated(self, params: Params, name: str, h: Array, context: Context) -> Array:
        """Returns queries or keys with `rope_fraction` of each head rotated."""
        heads = dot(h, params["attention"][name], "d,dnh->nh")
        return rotate(heads, context.positions, self.rope_base, fraction=self.rope_fraction)

    def _route(
        self, params: Params, name: str, h: States, context: Context
    ) -> tuple[experts.Choice, Usage]:
        """Returns each head's top-k experts as indices into the bank of all heads' experts."""
        weight, k = params["attention_router"][name], self.attention_top_k
        choice, usage = router.route(weight, h, k, context, score="sigmoid", einsum="d,dne->ne")
        return experts.by_head(choice, self.num_attention_experts), usage

    def queries(self, params: Params, h: States, context: Context) -> Queries:
        """Returns the queries of normalised states."""
        return Queries(self._rotated(params, "query", h, context))

    def keys_values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h`, and values of `x` by the experts that `h` chooses."""
        key = self._rotated(params, "key", h, context)
        value, usage = self.values(params, x, h, context)
        return KeysValues(key, value), usage

    def values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[Heads, Usage | None]:
        """Returns values of `x` by the experts that `h` chooses."""
        bank = params["attention_experts"]["value"]
        if not self.has_attention_experts:
            return dot(x, bank, "d,dnh->nh"), None
        choice, usage = self._route(params, "value", h, context)
        flat = choice.index.reshape(*x.shape[:2], -1)
        return experts.project_and_mix(x, flat, choice.weight, bank), usage

    def outputs(
        self, params: Params, mixed: Heads, h: States, queries: Queries, context: Context
    ) -> tuple[States, Usage | None]:
        """Returns the projections of the heads by the experts that `h` chooses."""
        bank = params["attention_experts"]["out"]
        if not self.has_attention_experts:
            weight = params["attention_router"]["out"]
            gate = jax.nn.sigmoid(dot(h.astype(jnp.float32), weight, "d,dn->n"))
            return dot(mixed * gate[..., None].astype(mixed.dtype), bank, "nh,nhd->d"), None
        choice, usage = self._route(params, "out", h, context)
        weight = choice.weight.reshape(*h.shape[:2], -1)
        return experts.project_and_mix(mixed, choice.index, weight, bank), usage

    def report(self, values: Usage | None, outputs: Usage | None) -> Report:
        """Returns the statistics of both routers; those of values are 0 where none were made."""
        if outputs is None:
            return {}
        values = jax.tree.map(jnp.zeros_like, outputs) if values is None else values
        return {"attention_router": {"value": values, "out": outputs}}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns minus the entropy of each sequence's expert probabilities, and their evenness.

        These probabilities are a softmax, though the gates are sigmoids.
        """
        value, out = (reports["attention_router"][name] for name in ("value", "out"))
        term = lambda usage: jax.vmap(balance.sequence_loss)(usage).sum()
        weighted = self.attention_entropy_weight * (term(value) + term(out))
        evenness = (balance.evenness(value) + balance.evenness(out)) / 2
        return {"attention_entropy": weighted}, {"attention_usage": evenness}

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        made = 0 if is_reading else 1
        if self.has_attention_experts:
            chosen = (1 + made) * self.attention_top_k
            scored = (1 + made) * self.num_attention_experts
        else:
            chosen, scored = 1 + made, 1
        projections = 2 * width * self.query_width * (1 + made + chosen)
        return projections + 2 * width * self.num_heads * scored + 4 * self.query_width * keys
