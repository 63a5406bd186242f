"""Each token picks its own depth, once: token choice of Mixture-of-Recursions.

Bae et al. 2025, arXiv 2507.10524. One router scores every depth 1 .. R on the states that enter the
core, and a token takes the best-scored. It goes round that often without a gate, and the last
result is then added, times its score, to the state that it entered with. In recursion r the tokens
of depth r or more attend among themselves. No token looks at another's score, so that training is
causal as it is.

How many tokens share a depth is not known ahead, so every recursion computes all tokens, and those
that are done are fillers that no other sees: nothing is saved by going round less often.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recursia import batch, ranges
from recursia.depth import routing
from recursia.depth.policy import Aux, Call, Pass, Policy
from recursia.layers.attention import Context
from recursia.params import Spec
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Recursion, Stack

Balancing = Literal["loss", "loss_free", "none"]


@dataclasses.dataclass(frozen=True)
class TokenChoice(Policy):
    """Token choice.

    Attributes:
      score: of a depth, from its logit: "softmax" over depths, or "sigmoid".
      alpha: largest score; None takes the released 1 of "softmax" and 0.1 of "sigmoid".
      gating: how the score enters a token's state when it is done.
      router: "linear", or "mlp" with one hidden layer.
      temperature: divides what the router sees.
      balancing: how depths are evened out. "loss": R times the sum over depths of the mean score
        times the share of tokens; "loss_free": a bias on the scores that choose, which rises for
        depths with less than their share (Wang et al. 2024, arXiv 2408.15664); or "none".
      balance_weight: of that loss.
      bias_rate: change of a bias in each update.
      z_loss_weight: of the mean squared log-sum-exp of a token's logits.
      full_depth_steps: training steps, from the first, in which every token takes every recursion.
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
        if self.alpha is None:
            object.__setattr__(self, "alpha", 1.0 if self.score == "softmax" else 0.1)
        super().__post_init__()
        rates = ("balance_weight", "bias_rate", "z_loss_weight")
        ranges.at_least(0, self, "alpha", *rates, "full_depth_steps")
        ranges.above(0, self, "temperature")

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns the router, and the biases of "loss_free": one for each depth."""
        depths = (self.num_recursions,)
        found: dict[str, Any] = {"router": routing.specs(self.router, embed_dim, depths)}
        if self.balancing == "loss_free":
            found["bias"] = Spec(depths, (None,), jax.nn.initializers.zeros, is_decayed=False)
        return found

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the states after each token's own number of recursions; the modes do not differ.

        Args:
          stack: the core.
          params: the router, and its biases.
          x: hidden states of all tokens.
          context: where they stand.
          call: in mode "train" the step is read while tokens take every recursion; in "causal",
            what no wanted token needs is left out.
        """
        logits = routing.logits(params["router"], x / self.temperature)
        scores = _scores(logits, self)
        depth = _depths(params, scores, self, call)
        gate = jnp.take_along_axis(scores, depth[..., None] - 1, axis=-1)[..., 0]

        def step(carry: tuple[Array, ...], recursion: Recursion, _: None):
            now, states, done = carry
            going = depth >= now
            visible = recursion.only(context, going, going)
            y, made = recursion.run(recursion.enter(states, visible), visible)
            last = (depth == now)[..., None]
            done = jnp.where(last, routing.update(x, y, gate, self.gating), done)
            states = jnp.where(going[..., None], y, states)
            state = jnp.where((depth > now)[..., None], states, done)
            return (now + 1, states, done), state, made

        carry = (jnp.int32(1), x, x)
        if call.wanted is None:
            (*_, x), states, report, _ = stack.loop(step, carry)
        else:
            needed = jnp.where(call.wanted, depth, 0).max()
            goes_on = lambda carry: carry[0] <= needed
            *_, x = stack.loop_while(step, carry, None, goes_on)
            states, report = None, {}
        losses, metrics = _reported(logits, scores, depth, self, context.is_live)
        return x, Aux(losses, metrics, depth, states, report)

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weights in force of losses that are no sums over tokens."""
        return ("balance_weight",) if self.balancing == "loss" and self.balance_weight else ()

    def after_step(self, params: dict[str, Any], metrics: dict[str, Array]) -> dict[str, Any]:
        """Returns the parameters with each bias moved towards an even share, by its sign alone."""
        if self.balancing != "loss_free" or self.full_depth_steps:
            return params
        share = metrics["depth_share"]
        return {**params, "bias": params["bias"] + self.bias_rate * jnp.sign(share.mean() - share)}

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy itself.

        Raises:
          ValueError: for another depth: a token's score says how often it goes round of how many.
        """
        if num_recursions != self.num_recursions:
            raise ValueError(
                f"depth {num_recursions}: token_choice chooses among {self.num_recursions} depths "
                f"at once; take {self.num_recursions}"
            )
        return self

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step: with a choice once the first steps are over."""
        if step < self.full_depth_steps:
            return self
        return dataclasses.replace(self, full_depth_steps=0)

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns one full pass per recursion, the first after scoring.

        What is needed of them supposes that every depth has as many tokens, as balancing wants.
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
    squash = jax.nn.softmax if config.score == "softmax" else jax.nn.sigmoid
    return config.alpha * squash(logits)


def _depths(
    params: dict[str, Any], scores: Float[Array, "B T R"], config: TokenChoice, call: Call
) -> Int[Array, "B T"]:
    """Returns the number of recursions that each token takes, from 1; ties take the fewest."""
    # The bias chooses and does nothing else: no gradient reaches it.
    depth = 1 + jnp.argmax(scores + params.get("bias", 0.0), axis=-1)
    if call.mode != "train" or not config.full_depth_steps:
        return depth
    if call.step is None:
        raise ValueError("step: None; token_choice with full_depth_steps trains at a step")
    return jnp.where(call.step < config.full_depth_steps, config.num_recursions, depth)


def _reported(
    logits: Float[Array, "B T R"],
    scores: Float[Array, "B T R"],
    depth: Int[Array, "B T"],
    config: TokenChoice,
    is_live: Bool[Array, "B T"] | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns losses and metrics of one choice, over all tokens that are not padding."""

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
