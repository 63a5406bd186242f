"""Pre-mixing attention: the experts of the feed-forward transform what tokens attend to.

Yang et al. 2025, arXiv 2505.07260 (UMoE). Attention is `sum_i A_i x V_i O_i` over heads; mixed
first it is `sum_i E_i(A_i x)`, and a feed-forward is the same with `A = 1`: one bank of experts
serves both.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from recursia import ranges
from recursia.layers import balance, norm, router
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Branch, Losses, Report, States
from recursia.layers.experts import project
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.layers.moe import MixtureOfExperts
from recursia.layers.rotary import Layout, rotate
from recursia.mixers.mixer import Mixed, Mixer, Queries
from recursia.params import Params, Spec

EPS = 1e-6  # of the norm of queries, whatever the others have


@dataclasses.dataclass(frozen=True)
class PreMixing(Mixer):
    """Attention with one key for all queries of a token, whose values are the states themselves.

    A router takes experts of the feed-forward. Expert `i` has the query `h W + norm(h A_i) B_i`
    and transforms what this attends to. An expert that every token takes has a query of its own.

    Attributes:
      head_dim: width of a query and of the key; even, for the rotation.
      attention_top_k: experts that a token takes.
      query_rank: width of `h A_i`, whose RMS norm has the same weights for all experts.
      attention_shared_dim: hidden width of the expert that every token takes; 0 has none.
      attention_scale: factor of the weights of chosen experts, the softmax over all.
      is_attention_renormalised: whether these weights are divided by their sum.
      attention_balance_weight: of the load balancing loss.
      attention_balance_over: what that loss balances: each "batch", or each "sequence" by itself.
      rope_base: base of the rotary wavelengths.
      rope_layout: which numbers of queries and keys are rotated as a pair; see `rotate`.
      init: initialisation of the matrices.
    """

    head_dim: int
    attention_top_k: int
    query_rank: int = 16
    attention_shared_dim: int = 0
    attention_scale: float = 1.0
    is_attention_renormalised: bool = False
    attention_balance_weight: float = 0.01
    attention_balance_over: Literal["batch", "sequence"] = "batch"
    rope_base: float = 10_000.0
    rope_layout: Layout = "halves"
    init: Init = dataclasses.field(default_factory=Init)

    feedforward: ClassVar[MixtureOfExperts]
    uses = ("experts",)
    exact = ("attention_router",)  # a rounded logit would choose another expert
    key_weights = (("attention", "key"),)

    def __post_init__(self):
        ranges.at_least(1, self, "head_dim", "attention_top_k", "query_rank")
        ranges.at_least(0, self, "attention_shared_dim", "attention_balance_weight")
        ranges.above(0, self, "attention_scale", "rope_base")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, takes an even number (rotary pairs)")

    def beside(self, feedforward: Branch) -> Mixer:
        """Returns the layer with the experts of a feed-forward, at least as many as it takes."""
        made = super().beside(feedforward)
        assert isinstance(feedforward, MixtureOfExperts)  # no other has a slot "experts"
        if (taken := self.attention_top_k) > (most := feedforward.num_experts):
            raise ValueError(f"mixer.attention_top_k: got {taken}, takes 1 to {most}, the experts")
        return made

    @property
    def slots(self) -> tuple[str, ...]:
        """Attention, its router, the queries of experts, and the expert that is always on."""
        own = "attention", "attention_router", "attention_queries"
        return (*own, "attention_shared") if self.attention_shared_dim else own

    @property
    def num_heads(self) -> int:
        """Queries of a token."""
        return self.attention_top_k + (self.attention_shared_dim > 0)

    @property
    def key_width(self) -> int:
        """Width of the key of a token."""
        return self.head_dim

    def value_dim(self, width: int) -> int:
        """Returns the width of the states, which are the values."""
        return width

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns what makes queries and keys, the router, and the expert that is always on."""
        d, h, r, hidden = width, self.head_dim, self.query_rank, self.attention_shared_dim
        e, read = self.feedforward.num_experts, self.init.read(d, d)
        names = ("query", "key", *(["shared_query"] if hidden else []))
        queries = {
            "down": Spec((e, d, r), ("experts", "embed", None), read),
            "norm": norm.specs("rms", r),
            "up": Spec((e, r, h), ("experts", None, None), self.init.read(d, r)),
        }
        write = self.init.write(d, max(hidden, 1), num_steps)
        shared = self.feedforward.dense_matrices(d, max(hidden, 1), read, write)
        return {
            "attention": dict.fromkeys(names, Spec((d, h), ("embed", None), read)),
            "attention_router": self.feedforward.linear_router(d, read),
            "attention_queries": queries,
            **({"attention_shared": shared} if hidden else {}),
        }

    def queries(self, params: Params, h: States, context: Context) -> Queries:
        """Returns the queries of the chosen experts, then that of the expert that is always on."""
        weights, of_experts = params["attention"], params["attention_queries"]
        how = {"score": "softmax", "is_renormalised": self.is_attention_renormalised}
        weight, k = params["attention_router"], self.attention_top_k
        choice, usage = router.route(weight, h, k, context, **how)
        choice = dataclasses.replace(choice, weight=self.attention_scale * choice.weight)
        thin = norm.rms_norm(project(h, choice.index, of_experts["down"]), of_experts["norm"], EPS)
        own = project(thin, choice.index[..., None], of_experts["up"])[..., 0, :]
        full = lambda name: dot(h, weights[name], "d,dh->h")[..., None, :]
        found = [
            full("query") + own,
            *([full("shared_query")] if self.attention_shared_dim else []),
        ]
        query = jnp.concatenate(found, axis=-2)
        rotated = rotate(query, context.positions, self.rope_base, self.rope_layout)
        return Queries(rotated, None, choice, usage)

    def keys_values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns the key of `h`, and `x` as its value."""
        key = dot(h, params["attention"]["key"], "d,dh->h")[..., None, :]
        key = rotate(key, context.positions, self.rope_base, self.rope_layout)
        return KeysValues(key, x[..., None, :]), None

    def outputs(
        self, params: Params, mixed: Mixed, h: States, queries: Queries, context: Context
    ) -> tuple[States, Usage | None]:
        """Returns the sum of the experts' outputs, each for the states that its query met."""
        k, alone = self.attention_top_k, lambda leaf: leaf[..., None]  # one expert for each query
        each = jax.tree.map(alone, queries.choice)
        y = self.feedforward.routed(params["experts"], mixed[..., :k, :], each)
        y = y.astype(jnp.float32).sum(-2).astype(h.dtype)
        if self.attention_shared_dim:
            y = y + self.feedforward.dense(params["attention_shared"], mixed[..., k, :])
        return y, queries.usage

    def report(self, values: Usage | None, outputs: Usage | None) -> Report:
        """Returns the statistics of the router."""
        return {"attention_router": outputs}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the load balancing loss of each router over all its uses."""
        used, over = reports["attention_router"], self.attention_balance_over
        unevenness = balance.unevenness(used, over)
        losses = {"attention_balance": self.attention_balance_weight * unevenness.sum()}
        return losses, {"attention_unevenness": unevenness.mean()}

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the load balancing loss, if it is one of means over the batch."""
        is_batch = self.attention_balance_over == "batch" and self.attention_balance_weight
        return ("attention_balance_weight",) if is_batch else ()

    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        d, h, k, shared = width, self.head_dim, self.attention_top_k, self.attention_shared_dim
        full = 1 + (not is_reading) + (shared > 0)  # the query of all experts, key, own query
        made = 2 * d * h * full + 2 * k * self.query_rank * (d + h)
        made += 2 * d * self.feedforward.num_experts  # the router
        hidden = self.feedforward.hidden_flops(d, k * self.feedforward.expert_dim + shared)
        return made + self.attention_flops(d, keys) + hidden

    def attention_flops(self, width: int, keys: int | float) -> int | float:
        """Returns the forward FLOPs of one token's products with keys and with states."""
        return 2 * self.num_heads * (self.head_dim + width) * keys

    def cache_entries(self, width: int) -> int:
        """Returns how many numbers the KV cache of one step holds for one token."""
        return self.head_dim + width
