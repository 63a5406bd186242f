"""Experts of one hidden unit each, few of very many, found by product keys.

PEER (He 2024, arXiv 2407.04153).
"""

import dataclasses

import jax
import jax.numpy as jnp

from recursia.feedforward.feedforward import FeedForward
from recursia.layers import product_keys
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.initial import Init
from recursia.params import Params


@dataclasses.dataclass(frozen=True)
class RankOneExperts(FeedForward):
    """`sum_j w_j gelu(x . up_j) down_j` over the experts that the queries of `h` find.

    A head's weights `w` are the softmax over the scores of the keys that it finds. All steps of the
    core share one table of experts, the slot `memory_values`, whatever they share else.

    Attributes:
      num_keys: half keys of each half of a head; there are its square of experts.
      key_dim: width of a whole key; even.
      retrieval_heads: heads, each with a query and keys of its own.
      top_k: experts that a head takes.
      values_rate: factor of the learning rate of the experts, whose gradient is clipped by itself.
      init: initialisation of the queries.
    """

    num_keys: int
    key_dim: int
    retrieval_heads: int = 4
    top_k: int = 32
    values_rate: float = 10.0
    init: Init = dataclasses.field(default_factory=Init)

    norm_name = "mlp"
    slots = ("memory_keys", "memory_values")
    exact = ("memory_keys",)  # a rounded score would find another expert
    common = ("memory_values",)

    def __post_init__(self):
        product_keys.check(self)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, half keys of each half, and width of a key."""
        return self.retrieval_heads, self.num_keys, self.key_dim

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns queries and keys, and the experts."""
        read = self.init.read(width, width)
        table = product_keys.table(self.num_keys, width, self.values_rate)
        return {
            "memory_keys": product_keys.specs(width, self.sizes, read),
            "memory_values": {"up": table, "down": table},
        }

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the writes to the residual stream."""
        experts = params["memory_values"]
        found = product_keys.search(h, **params["memory_keys"], top_k=self.top_k)
        share = jax.nn.softmax(found.score)
        hidden = jnp.einsum("btd,btnkd->btnk", x, experts["up"][found.index])
        hidden = share.astype(x.dtype) * jax.nn.gelu(hidden, approximate=False)
        y = jnp.einsum("btnk,btnkd->btd", hidden, experts["down"][found.index])
        return y, product_keys.report(found, self.num_keys, context)

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        search = product_keys.search_flops(width, self.sizes)
        return search + 4 * self.retrieval_heads * self.top_k * width
