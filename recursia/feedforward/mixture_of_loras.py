"""Mixture of LoRAs: a feed-forward of which each token mixes several, a thin product apart.

ModernALBERT's: `y = sum_i p_i FF_i(h)`, where `FF_i` is one feed-forward with `W + scale A_i B_i`
for every matrix `W`, and `p` the softmax of a router over the experts taken. Results are mixed, not
weights: the feed-forward's non-linearity stands between the products of one expert. Published for
encoders; known here from its equation alone.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import params as parameters
from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.params import Leaf, Spec, normal


@dataclasses.dataclass(frozen=True)
class MixtureOfLoras(FeedForward):
    """Experts that are thin products; those of `B` are zero at the start, and do nothing then.

    The feed-forward, its experts and their router are slots that vary apart: tie the first alone,
    and each step has experts of its own.

    Attributes:
      feedforward: what the experts modulate; `kind` names a module of one slot, such as "swiglu".
      num_experts: of the layer.
      rank: of an expert's products; a matrix that is thinner takes its own width.
      top_k: of the experts, how many a token takes; with one alone its router learns nothing.
      scale: multiplies the products; published as alpha over the rank.
      init_std: standard deviation of `A` and of the router at the start.
    """

    feedforward: FeedForward
    num_experts: int
    rank: int
    top_k: int = 2
    scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "rank")
        ranges.choice(self, "top_k", "num_experts")
        ranges.above(0, self, "scale")
        ranges.at_least(0, self, "init_std")
        if len(slots := self.feedforward.slots) > 1:
            raise ValueError(
                f"feedforward: got one with the slots {', '.join(slots)}, takes one of matrices "
                "alone, such as 'swiglu'"
            )

    @property
    def norm_name(self) -> str:
        """That of the feed-forward."""
        return self.feedforward.norm_name

    @property
    def slots(self) -> tuple[str, ...]:
        """The feed-forward's, and what is added to it."""
        return (*self.feedforward.slots, "lora_experts", "lora_router")

    @property
    def exact(self) -> tuple[str, ...]:
        """The router: a rounded logit would choose another expert."""
        return (*self.feedforward.exact, "lora_router")

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns the feed-forward's, `a` and `b` of every matrix for each expert, the router."""

        def pair(spec: Spec) -> dict[str, Spec]:
            (taken, given), (axis, other) = spec.shape, spec.axes
            e, r = self.num_experts, self._rank(spec)
            return {
                "a": Spec((e, taken, r), ("experts", axis, None), normal(self.init_std)),
                "b": Spec((e, r, given), ("experts", None, other), zeros),
            }

        ((slot, tree),) = self.feedforward.specs(width, num_steps).items()
        matrices = _matrices(tree)
        again = lambda spec: 1 if spec.axes[0] == "embed" else self.top_k
        shared = {n: dataclasses.replace(s, products=again(s)) for n, s in matrices.items()}
        router = Spec((width, self.num_experts), ("embed", None), normal(self.init_std))
        pairs = {name: pair(spec) for name, spec in matrices.items()}
        added = {"lora_experts": pairs, "lora_router": router}
        return {slot: {**tree, **shared}, **parameters.mark(added, is_matrix=False)}

    def apply(
        self,
        params: dict[str, Leaf],
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Report]:
        """Returns the mean of what the experts that `h` chooses make, and how they were used.

        It is the first one's and the weighted distance of the others from it: experts that add
        nothing leave the feed-forward as it is, to the bit.
        """
        logits = dot(h.astype(jnp.float32), params["lora_router"], "d,de->e")
        choice = experts.choose(logits, self.top_k, score="softmax", is_renormalised=True)
        (slot,) = self.feedforward.slots
        pairs = params["lora_experts"]
        bases = {name: _Once(params[slot][name]) for name in pairs}

        def made(index: Int[Array, "B T 1"]) -> Float[Array, "B T D"]:
            with_expert = lambda name: _Chosen(
                bases[name], **pairs[name], index=index, scale=self.scale
            )
            weights = {slot: {**params[slot], **{name: with_expert(name) for name in pairs}}}
            return self.feedforward.apply(weights, x, h, context)[0].astype(jnp.float32)

        first, *others = (made(choice.index[..., i : i + 1]) for i in range(self.top_k))
        y = first
        for i, other in enumerate(others, start=1):
            y += choice.weight[..., i : i + 1] * (other - first)
        report = {"lora_router": balance.usage(logits, choice.index, context.is_live)}
        return y.astype(h.dtype), report

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns no loss, and how evenly experts are taken."""
        return {}, {"expert_usage": balance.evenness(reports["lora_router"])}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Matrices that read the stream multiply it once for all experts, the others once for each.
        """
        (slot,) = self.feedforward.slots
        matrices = _matrices(self.specs(width, 1)[slot]).values()
        again = sum((spec.products - 1) * math.prod(spec.shape) for spec in matrices)
        thin = sum(self.top_k * self._rank(spec) * sum(spec.shape) for spec in matrices)
        added = again + thin + width * self.num_experts
        return self.feedforward.forward_flops(width) + 2 * added

    def _rank(self, spec: Spec) -> int:
        return min(self.rank, *spec.shape)


def _matrices(tree: dict[str, Spec]) -> dict[str, Spec]:
    return {name: spec for name, spec in tree.items() if len(spec.shape) == 2}


class _Once:
    """A matrix whose product with the same states is made once, whoever asks."""

    def __init__(self, weight: Leaf):
        self.weight, self.made = weight, []

    def dot(self, x: Array, einsum: str) -> Array:
        for states, product in self.made:
            if states is x:
                return product
        product = dot(x, self.weight, einsum)
        self.made.append((x, product))
        return product


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A matrix with the products of one expert for each token added; see `layers.linear.dot`."""

    base: _Once
    a: Float[Array, "E D R"]
    b: Float[Array, "E R F"]
    index: Int[Array, "B T 1"]
    scale: float

    def dot(self, x: Array, einsum: str) -> Array:
        thin = self.scale * experts.project(x, self.index, self.a)[..., 0, :]
        return self.base.dot(x, einsum) + experts.project(thin, self.index, self.b)[..., 0, :]
