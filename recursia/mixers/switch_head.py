"""SwitchHead: each head chooses projections of its values and outputs among experts.

Csordás et al. 2023, arXiv 2312.07987, as in MoEUT (Csordás et al. 2024, arXiv 2405.16039).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers import balance, experts
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Losses, Report
from recursia.layers.linear import dot
from recursia.layers.rotary import rotate
from recursia.mixers.mixer import Mixer, Params, Queries
from recursia.params import Leaf, Spec, normal


@dataclasses.dataclass(frozen=True)
class SwitchHead(Mixer):
    """Attention whose heads have experts; variances at the start fall with the effective depth.

    Attributes:
      num_heads: of attention.
      head_dim: width of a head.
      num_attention_experts: value and output projections of each head; of 1, each head's output has
        a gate instead of a choice.
      attention_top_k: of them, how many a token takes, once for values and once for outputs.
      rope_fraction: of a head, how much is rotated, rounded down to an even width.
      rope_base: base of the rotary wavelengths.
      attention_entropy_weight: of the loss that spreads a sequence over the experts.
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

    @property
    def query_width(self) -> int:
        """Numbers in all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers in all keys of a token."""
        return self.num_heads * self.head_dim

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns queries and keys, the experts of values and outputs, and their routers."""
        d, h, n, a = width, self.head_dim, self.num_heads, self.num_attention_experts
        scale = math.sqrt(2 / num_steps)
        std, std_out = scale / math.sqrt(d), scale / math.sqrt(n * h)
        heads = Spec((d, n, h), ("embed", "heads", None), normal(std))
        alike = experts.alike(std, is_by_expert=True)
        if self.has_attention_experts:
            value = Spec((n * a, d, h), ("experts", "embed", None), normal(std))
            out = Spec((n * a, h, d), ("experts", None, "embed"), normal(std_out))
            select = Spec((d, n, a), ("embed", "heads", None), alike, is_matrix=False)
            router = {"value": select, "out": select}
        else:
            value = heads
            out = Spec((n, h, d), ("heads", None, "embed"), normal(std_out), inputs=2)
            router = {"out": Spec((d, n), ("embed", "heads"), alike, is_matrix=False)}
        return {
            "attention": {"query": heads, "key": heads},
            "attention_experts": {"value": value, "out": out},
            "attention_router": router,
        }

    def _rotated(self, params: Params, name: str, h: Array, context: Context) -> Array:
        """Returns heads of which the first part is rotated."""
        heads = dot(h, params["attention"][name], "d,dnh->nh")
        return rotate(heads, context.positions, self.rope_base, fraction=self.rope_fraction)

    def _choose(self, h: Array, router: Array, context: Context) -> tuple[experts.Choice, Usage]:
        """Chooses each head's projections among its own, as entries [B T N*k] of all heads'."""
        logits = dot(h.astype(jnp.float32), router, "d,dne->ne")
        k = self.attention_top_k
        choice = experts.choose(logits, k, score="sigmoid", is_renormalised=False)
        return (
            experts.by_head(choice, self.num_attention_experts),
            balance.usage(logits, choice.index, context.is_live),
        )

    def queries(self, params: Params, h: Float[Array, "B T D"], context: Context) -> Queries:
        """Returns the queries of normalised states."""
        return Queries(self._rotated(params, "query", h, context))

    def keys_values(
        self, params: Params, x: Float[Array, "B T D"], h: Float[Array, "B T D"], context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys of `h`, and values of `x` by projections chosen from `h`."""
        key, bank = self._rotated(params, "key", h, context), params["attention_experts"]["value"]
        if not self.has_attention_experts:
            return KeysValues(key, dot(x, bank, "d,dnh->nh")), None
        choice, usage = self._choose(h, params["attention_router"]["value"], context)
        flat = choice.index.reshape(*x.shape[:2], -1)
        return KeysValues(key, experts.project_and_mix(x, flat, choice.weight, bank)), usage

    def outputs(
        self,
        params: Params,
        mixed: Float[Array, "B T N H"],
        h: Float[Array, "B T D"],
        queries: Queries,
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Usage | None]:
        """Returns the heads, by projections chosen from `h`."""
        bank, router = params["attention_experts"]["out"], params["attention_router"]["out"]
        if not self.has_attention_experts:
            gate = jax.nn.sigmoid(dot(h.astype(jnp.float32), router, "d,dn->n"))
            return dot(mixed * gate[..., None].astype(mixed.dtype), bank, "nh,nhd->d"), None
        choice, usage = self._choose(h, router, context)
        weight = choice.weight.reshape(*h.shape[:2], -1)
        return experts.project_and_mix(mixed, choice.index, weight, bank), usage

    def report(self, made: Usage | None, written: Usage | None) -> Report:
        """Returns the use of both kinds of experts: a step that reads values adds no use of its."""
        if written is None:
            return {}
        made = jax.tree.map(jnp.zeros_like, written) if made is None else made
        return {"attention_router": {"value": made, "out": written}}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns minus the entropy of each sequence's use of experts, and how even that is.

        The probabilities are softmax though the gates are sigmoid, and nothing else uses them.
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
