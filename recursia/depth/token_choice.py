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

from recursia import batch, inject, kv, ranges
from recursia.depth import routing
from recursia.depth.policy import Aux, Call, Mode, Pass
from recursia.layers.attention import Context
from recursia.params import Spec
from recursia.sharing.core import Core, Made
from recursia.sharing.grid import Grid

SLOTS = ()
Balancing = Literal["loss", "loss_free", "none"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Token choice.

    Attributes:
      num_recursions: the largest depth.
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

    num_recursions: int
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
        ranges.recursions(self)
        rates = ("balance_weight", "bias_rate", "z_loss_weight")
        ranges.at_least(0, self, "alpha", *rates, "full_depth_steps")
        ranges.above(0, self, "temperature")


def specs(config: Config, grid: Grid, embed_dim: int) -> dict[str, Any]:
    """Returns the router, and the biases of "loss_free": one for each depth."""
    depths = (config.num_recursions,)
    found: dict[str, Any] = {"router": routing.specs(config.router, embed_dim, depths)}
    if config.balancing == "loss_free":
        found["bias"] = Spec(depths, (None,), jax.nn.initializers.zeros, is_decayed=False)
    return found


def check(config: Config, grid: Grid, kv: kv.Config, told: inject.Config) -> None:
    """Refuses a walk block by block: a depth counts whole recursions.

    Raises:
      ValueError: for order "sequence".
    """
    if grid.order == "sequence":
        raise ValueError(
            "depth: token_choice counts whole recursions, and sharing 'sequence' has none: its "
            "walk is block by block; take a cycle, or depth.kind 'fixed'"
        )


def run(
    core: Core,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    config: Config,
    call: Call,
) -> tuple[Float[Array, "B T D"], Aux]:
    """Returns the states after each token's own number of recursions; the modes do not differ.

    Args:
      core: one recursion of the shared stack.
      params: the router, and its biases.
      x: hidden states of all tokens.
      context: where they stand.
      config: the policy.
      call: in mode "train" the step is read while tokens take every recursion; in "causal", what no
        wanted token needs is left out.
    """
    logits = routing.logits(params["router"], x / config.temperature)
    scores = _scores(logits, config)
    depth = _depths(params, scores, config, call)
    gate = jnp.take_along_axis(scores, depth[..., None] - 1, axis=-1)[..., 0]

    def recursion(carry: tuple[Array, ...], private: Any, _: None, source: Made | None):
        now, states, done = carry
        going = depth >= now
        visible = context.count_only(going) if core.kv.reads_first else context.hide(~going)
        y, made = core.recurse(core.enter(states, private, visible), private, visible, source)
        last = (depth == now)[..., None]
        done = jnp.where(last, routing.update(x, y, gate, config.gating), done)
        states = jnp.where(going[..., None], y, states)
        state = jnp.where((depth > now)[..., None], states, done)
        return (now + 1, states, done), state, made.replace(context=context)

    carry = (jnp.int32(1), x, x)
    if call.wanted is None:
        (*_, x), states, report = core.each_recursion(recursion, carry, None)
    else:
        needed = jnp.where(call.wanted, depth, 0).max()
        goes_on = lambda carry: carry[0] <= needed
        *_, x = core.recursions_while(recursion, carry, None, goes_on)
        states, report = None, {}
    losses, metrics = _reported(logits, scores, depth, config, context.is_live)
    return x, Aux(losses, metrics, depth, states, report)


def _scores(logits: Float[Array, "B T R"], config: Config) -> Float[Array, "B T R"]:
    squash = jax.nn.softmax if config.score == "softmax" else jax.nn.sigmoid
    return config.alpha * squash(logits)


def _depths(
    params: dict[str, Any], scores: Float[Array, "B T R"], config: Config, call: Call
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
    config: Config,
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


def batch_losses(config: Config) -> tuple[str, ...]:
    """Returns the weights in force of losses that are no sums over tokens."""
    return ("balance_weight",) if config.balancing == "loss" and config.balance_weight else ()


def after_step(config: Config, params: dict[str, Any], metrics: dict[str, Array]) -> dict[str, Any]:
    """Returns the parameters with each bias moved towards an even share, by its sign alone."""
    if config.balancing != "loss_free" or config.full_depth_steps:
        return params
    share = metrics["depth_share"]
    return {**params, "bias": params["bias"] + config.bias_rate * jnp.sign(share.mean() - share)}


def at_depth(config: Config, num_recursions: int) -> Config:
    """Returns the config itself.

    Raises:
      ValueError: for another depth: a token's score says how often it goes round of how many.
    """
    if num_recursions != config.num_recursions:
        raise ValueError(
            f"depth {num_recursions}: token_choice chooses among {config.num_recursions} depths "
            f"at once; take {config.num_recursions}"
        )
    return config


def at_step(config: Config, step: int) -> Config:
    """Returns the config of a training step: with a choice once the first steps are over."""
    if step < config.full_depth_steps:
        return config
    return dataclasses.replace(config, full_depth_steps=0)


def is_causal(config: Config, mode: Mode) -> bool:
    """Returns True: each token chooses by its own state."""
    return True


def passes(config: Config, grid: Grid, kv: kv.Config, seq_len: int) -> list[Pass]:
    """Returns one full pass per recursion, the first after scoring.

    What is needed of them supposes that every depth has as many tokens, as balancing wants.
    """
    count = config.num_recursions
    return [
        Pass(
            queries=seq_len,
            keys=seq_len,
            is_reading=kv.is_reading(r),
            scored=0 if r else seq_len,
            needed=seq_len * (count - r) // count,
        )
        for r in range(count)
    ]


def num_exits(config: Config) -> int:
    """Returns 1: training reads the last state through the head."""
    return 1


def score_flops(config: Config, embed_dim: int) -> int:
    """Returns the forward FLOPs of scoring one token at all depths."""
    return routing.flops(config.router, embed_dim, config.num_recursions)
