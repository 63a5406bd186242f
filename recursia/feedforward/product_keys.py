"""Memory layer: each token reads the values of few keys of very many, found by product keys.

Lample et al. 2019 (arXiv 1907.05242), as in Memory Layers at Scale (Berges et al. 2024, arXiv
2412.09764).
"""

import dataclasses

import jax
import jax.numpy as jnp

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import product_keys
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.initial import Init
from recursia.layers.linear import dot, dot_of
from recursia.layers.norm import zeros
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class ProductKeys(FeedForward):
    """`(m * silu(x gate + gate_bias)) out + out_bias`, where m sums the values that `h` finds.

    A head's weights are the softmax over the scores of the keys that it finds. All steps of the
    core read one table of values, whatever they share else; `varies.memory_values` says otherwise.
    Queries and keys are the slot `memory_keys`, gate and output the slot `memory_output`.

    Attributes:
      num_keys: half keys of each half of a head; the table has its square of values.
      key_dim: width of a whole key; even.
      value_dim: width of a value.
      retrieval_heads: heads, each with a query and keys of its own.
      top_k: values that a head reads.
      values_rate: factor of the learning rate of the table, whose gradient is clipped by itself;
        the published rate is ten times that of other parameters.
      init: initialisation of the matrices.
    """

    num_keys: int
    key_dim: int
    value_dim: int
    retrieval_heads: int = 4
    top_k: int = 32
    values_rate: float = 10.0
    init: Init = dataclasses.field(default_factory=Init)

    norm_name = "mlp"
    slots = ("memory_keys", "memory_output", "memory_values")
    exact = ("memory_keys",)  # a rounded score would find another key
    common = ("memory_values",)

    def __post_init__(self):
        product_keys.check(self)
        ranges.at_least(1, self, "value_dim")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, half keys of each half, and width of a key."""
        return self.retrieval_heads, self.num_keys, self.key_dim

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns queries and keys, gate and output, and the table of values."""
        d, v = width, self.value_dim
        read, write = self.init.read(d, d), self.init.write(d, v, num_steps)
        bias = lambda size, axis: Spec((size,), (axis,), zeros, is_decayed=False)
        return {
            "memory_keys": product_keys.specs(d, self.sizes, read),
            "memory_output": {
                "gate": Spec((d, v), ("embed", "mlp"), read),
                "gate_bias": bias(v, "mlp"),
                "out": Spec((v, d), ("mlp", "embed"), write),
                "out_bias": bias(d, None),
            },
            "memory_values": product_keys.table(self.num_keys, v, self.values_rate),
        }

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the writes to the residual stream."""
        weights, table = params["memory_output"], params["memory_values"]
        found = product_keys.search(h, **params["memory_keys"], top_k=self.top_k)
        share = jax.nn.softmax(found.score).astype(x.dtype)
        read = jnp.einsum("btnk,btnkv->btv", share, table[found.index])
        gate = dot(x, weights["gate"], "d,dv->v")
        gated = lambda read, gate, bias: read * jax.nn.silu(gate + bias)
        y = dot_of(gated, (read, gate, weights["gate_bias"]), weights["out"], "v,vd->d")
        report = product_keys.report(found, self.num_keys, context)
        return y + weights["out_bias"], report

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        values = 2 * self.retrieval_heads * self.top_k * self.value_dim
        search = product_keys.search_flops(width, self.sizes)
        return search + values + 4 * width * self.value_dim
