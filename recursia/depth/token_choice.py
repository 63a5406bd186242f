"""Token choice of Mixture-of-Recursions: a router gives each token its depth before the core.

Bae et al. 2025, arXiv 2507.10524. One router scores every depth 1 .. R on the states that enter the
core, and a token takes the depth of the highest score. It takes that many recursions without a
gate; its last state, times its score, is then added to the state that entered. In recursion r the
tokens of depth r or more attend to each other. No token reads another's score: training is causal.

The number of tokens of a depth is dynamic, so every recursion computes all tokens and discards the
results of finished ones, to which no other token attends: smaller depths save no computation.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recursia import batch, ranges
from recursia.depth import routing
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.layers import balance
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.layers.norm import zeros
from recursia.params import Params, Spec
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

Balancing = Literal["loss", "loss_free", "none"]


@dataclasses.dataclass(frozen=True)
class TokenChoice(Policy):
    """Token choice: one choice of depth for each token.

    Attributes:
      score: function of the logits: "softmax" over depths, or "sigmoid".
      alpha: largest score; None takes the released 1 for "softmax" and 0.1 for "sigmoid".
      gating: how the score enters a token's last state.
      router: "linear", or "mlp" with one hidden layer.
      temperature: divides the router's input.
      balancing: load balancing of depths. "loss": R times the sum over depths of the mean score
        times the share of tokens; "loss_free": a bias added to the scores when choosing, which
        rises for depths with less than an equal share (Wang et al. 2024, arXiv 2408.15664); or
        "none".
      balance_weight: of the load balancing loss.
      bias_rate: change of a bias in each update.
      z_loss_weight: of the mean squared log-sum-exp of a token's logits.
      full_depth_steps: number of first training steps in which every token takes every recursion.
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    alpha: float | None = None
    gating: routing.Gating = "weighted"
    router: routing.Kind = "linear"
    temperature: float = 1.0
    balancing: Balancing = "loss"
    balance_weight: float = 0.1
    bias_rate: float = 0.001
    z_loss_weight: float = 0.0
    full_depth_steps: int = 0

    def __post_init__(self):
        object.__setattr__(self, "alpha", self.largest_score)
        super().__post_init__()
        rates = ("balance_weight", "bias_rate", "z_loss_weight")
        ranges.at_least(0, self, "alpha", *rates, "full_depth_steps")
        ranges.above(0, self, "temperature")

    @property
    def largest_score(self) -> float:
        """`alpha`, or its default."""
        default = 1.0 if self.score == "softmax" else 0.1
        return default if self.alpha is None else self.alpha

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the router, and with "loss_free" a bias for each depth."""
        depths = (self.num_recursions,)
        router = routing.specs(self.router, embed_dim, depths)
        if self.balancing != "loss_free":
            return {"router": router}
        return {"router": router, "bias": Spec(depths, (None,), zeros, is_decayed=False)}

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after each token's own number of recursions.

        Its `Aux.scores` are those of each depth.
        """
        logits = routing.logits(params["router"], x / self.temperature)
        scores = _scores(logits, self)
        depth = _depths(params, scores, self, call)
        gate = jnp.take_along_axis(scores, depth[..., None] - 1, axis=-1)[..., 0]

        def step(
            carry: tuple[Array, ...], recursion: Recursion, _: None
        ) -> tuple[tuple[Array, ...], Array, RecursionOutput]:
            number, states, output = carry  # recursions are numbered from 1
            going = depth >= number
            visible = recursion.only(context, going, going)
            y, made = recursion.run(recursion.enter(states, visible), visible)
            is_last = (depth == number)[..., None]
            output = jnp.where(is_last, routing.update(x, y, gate, self.gating), output)
            states = jnp.where(going[..., None], y, states)
            state = jnp.where((depth > number)[..., None], states, output)
            return (number + 1, states, output), state, made

        carry = (jnp.int32(1), x, x)
        if call.wanted is None:
            (*_, x), states, report, _ = stack.loop(step, carry)
        else:
            deepest = jnp.where(call.wanted, depth, 0).max()
            *_, x = stack.loop_while(step, carry, None, lambda carry: carry[0] <= deepest)
            states, report = None, {}
        losses, metrics = _statistics(logits, scores, depth, self, context.is_live)
        by_depth = None if call.mode == "train" else jnp.moveaxis(scores, -1, 0)
        return x, Aux(losses, metrics, depth, states, report, scores=by_depth)

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the load balancing loss, a product of means over the batch."""
        return ("balance_weight",) if self.balancing == "loss" and self.balance_weight else ()

    def after_step(self, params: Params, metrics: dict[str, Array]) -> Params:
        """Returns the parameters with each bias raised or lowered towards an equal share."""
        if self.balancing != "loss_free" or self.full_depth_steps:
            return params
        bias = balance.evened(params["bias"], metrics["depth_share"], self.bias_rate)
        return {**params, "bias": bias}

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy itself; refuses another depth, for which it has no scores."""
        if num_recursions != self.num_recursions:
            raise ValueError(
                f"depth {num_recursions}: token_choice chooses among {self.num_recursions} depths "
                f"at once; take {self.num_recursions}"
            )
        return self

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step: tokens choose after `full_depth_steps`."""
        if step < self.full_depth_steps:
            return self
        return dataclasses.replace(self, full_depth_steps=0)

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns a pass of all tokens per recursion; the router runs before the first.

        `needed` is an estimate: it supposes the same number of tokens at each depth.
        """
        count = self.num_recursions
        return [
            Pass(
                recursion=r,
                queries=seq_len,
                scored=0 if r else seq_len,
                needed=seq_len * (count - r) // count,
            )
            for r in range(count)
        ]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of scoring one token at all depths."""
        return routing.flops(self.router, embed_dim, self.num_recursions)


def _scores(logits: Float[Array, "B T R"], config: TokenChoice) -> Float[Array, "B T R"]:
    probability = jax.nn.softmax if config.score == "softmax" else jax.nn.sigmoid
    return config.largest_score * probability(logits)


def _depths(
    params: Params, scores: Float[Array, "B T R"], config: TokenChoice, call: Call
) -> Int[Array, "B T"]:
    """Returns the number of recursions that each token takes, from 1; ties take the fewest."""
    # The bias only changes the choice, so it has no gradient.
    depth = 1 + jnp.argmax(scores + params.get("bias", 0.0), axis=-1)
    if call.mode != "train" or not config.full_depth_steps:
        return depth
    if call.step is None:
        raise ValueError("step: None; token_choice with full_depth_steps trains at a step")
    return jnp.where(call.step < config.full_depth_steps, config.num_recursions, depth)


def _statistics(
    logits: Float[Array, "B T R"],
    scores: Float[Array, "B T R"],
    depth: Int[Array, "B T"],
    config: TokenChoice,
    is_live: Bool[Array, "B T"] | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns losses and metrics of the router, over all tokens that are not padding."""

    def mean(values: Array) -> Array:
        where = None if is_live is None else is_live.reshape(*depth.shape, *[1] * (values.ndim - 2))
        return batch.mean(values.astype(jnp.float32), (0, 1), where)

    depths = jnp.arange(1, config.num_recursions + 1)
    share, score = mean(depth[..., None] == depths), mean(scores)
    balance = config.num_recursions * (score * share).sum()
    z = mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
    metrics = {
        "depth_share": share,
        "depth_score": score,
        "router_balance": balance,
        "router_z": z,
        "tokens_kept": mean(depth[..., None] >= depths),
    }
    losses = {}
    if config.balancing == "loss":
        losses["router_balance"] = config.balance_weight * balance
    if config.z_loss_weight:
        losses["router_z"] = config.z_loss_weight * z
    return losses, metrics
