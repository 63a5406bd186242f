"""A gate reads the state after each recursion, and tells how likely a token is to stop there.

Looped language models: Zhu et al. 2025, arXiv 2510.25741. With l_t = sigmoid(w . h_t + b), a token
stops after recursion t with probability p_t = l_t prod_{j<t} (1 - l_j), and after the last one with
what is left. Training takes all recursions, in two stages:

    1  model and gate, by sum_t p_t CE_t - entropy_weight H(p): up to a constant, the distance from
       a uniform prior over depths
    2  the gate alone, by whether a recursion helped: the improvement I_t = max(0, CE_{t-1} - CE_t)
       makes the target sigmoid(slope (I_t - margin)) of going on, 1 - l_t, in a binary
       cross-entropy that is averaged over t = 2 .. R

Afterwards a token stops at the first t with p_1 + .. + p_t >= exit_threshold. A token that has
stopped goes on being computed for those that attend to it, so that a state does not depend on which
others stop; in causal mode the loop ends when all wanted tokens have stopped.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from recursia import batch, injection, ranges
from recursia.depth.policy import Aux, Call, Pass, Policy
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.params import Leaf, Spec, normal
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Recursion, Stack

INIT_STD = 0.02  # of the gate's weight


@dataclasses.dataclass(frozen=True)
class ExitGate(Policy):
    """A gate that learns where to stop.

    Attributes:
      stage: of training: 1 trains model and gate, 2 the gate alone, by whether a recursion helped.
        In stage 2 let `optimizer.trainable` be "depth", or weight decay moves the rest.
      entropy_weight: of the entropy over depths in stage 1.
      slope: how sharply stage 2 tells an improvement from none, per nat.
      margin: the improvement that stage 2 holds to be half worth a recursion, in nats.
      exit_threshold: the probability of having stopped at which a token stops, in modes other than
        "train"; 1 takes every recursion.
    """

    shows_stopped = True

    stage: int = 1
    entropy_weight: float = 0.1
    slope: float = 50.0
    margin: float = 0.005
    exit_threshold: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.stage not in (1, 2):
            raise ValueError(f"stage: got {self.stage}, takes 1 or 2")
        ranges.at_least(0, self, "entropy_weight", "slope")
        if not 0 <= self.exit_threshold <= 1:
            raise ValueError(
                f"exit_threshold: got {self.exit_threshold}, takes a probability from 0 to 1"
            )

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns the gate, one for all recursions."""
        weight = Spec((embed_dim,), ("embed",), normal(INIT_STD))
        return {"gate": {"weight": weight, "bias": Spec((), (), zeros, is_decayed=False)}}

    def check(self, schedule: Schedule, coda: int, inject: injection.Injection) -> None:
        """Refuses a model in which the head does not read what the gate does.

        Raises:
          ValueError: for order "sequence", or with a coda.
        """
        super().check(schedule, coda, inject)
        if coda:
            raise ValueError(
                f"depth: exit_gate reads every recursion's state through the head, and {coda} "
                "blocks of a coda stand between them; take coda 0"
            )

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns each token's state where it stopped; in mode "train" the last one."""
        start = _Walk(
            state=x,
            chosen=x,
            log_left=jnp.zeros(x.shape[:2]),
            steps=jnp.zeros(x.shape[:2], jnp.int32),
            is_running=jnp.ones(x.shape[:2], bool),
        )
        step = _recursion(params["gate"], context, self, call)
        is_last = jnp.arange(stack.schedule.num_recursions) == stack.schedule.num_recursions - 1
        if call.mode == "causal":
            wanted = True if call.wanted is None else call.wanted
            goes_on = lambda walk: (walk.is_running & wanted).any()
            walk = stack.loop_while(step, start, is_last, goes_on)
            return walk.chosen, Aux({}, {}, walk.steps, None)
        walk, (states, scores, log_p), report, _ = stack.loop(step, start, is_last)
        p = jnp.exp(log_p)
        entropy = -(p * log_p).sum(0)
        mean = lambda values: batch.mean(values, (-2, -1), context.is_live)
        metrics = {"exit_probability": mean(p), "exit_entropy": mean(entropy)}
        aux = Aux({}, metrics, walk.steps, states, report)
        if call.mode == "train":
            exits = {"entropy": entropy} if self.stage == 1 else {"scores": scores}
            weights = p if self.stage == 1 else jnp.zeros_like(p)
            aux = aux.replace(exit_weights=weights, exits=exits)
        return walk.chosen, aux

    def stopping_loss(
        self, exits: dict[str, Array], nats: Float[Array, "R B T"]
    ) -> Float[Array, "B T"]:
        """Returns what a token's stopping costs besides its expected cross-entropy, in nats.

        Args:
          exits: the entropy of p in stage 1; the gate's scores w . h_t + b [R B T] in stage 2.
          nats: cross-entropy of the state after each recursion, without a gradient.
        """
        if self.stage == 1:
            return -self.entropy_weight * exits["entropy"]
        gain = jnp.maximum(nats[:-1] - nats[1:], 0.0)
        goes_on = jax.nn.sigmoid(self.slope * (gain - self.margin))
        score = exits["scores"][1:]
        each = goes_on * jax.nn.softplus(score) + (1 - goes_on) * jax.nn.softplus(-score)
        return each.sum(0) / max(self.num_recursions - 1, 1)

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy with another most; the gate serves any number of recursions."""
        return dataclasses.replace(self, num_recursions=num_recursions)

    def at_step(self, step: int) -> "Policy":
        """Returns the policy itself: training steps do not differ."""
        return self

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns one full pass per recursion: training reads the gate after each."""
        is_trained = self.stage == 1
        each = range(schedule.num_recursions)
        return [Pass(r, seq_len, scored=seq_len, is_trained=is_trained) for r in each]

    @property
    def num_exits(self) -> int:
        """States that training reads through the head: all."""
        return self.num_recursions

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of the gate for one token after one recursion."""
        return 2 * embed_dim


@struct.dataclass
class _Walk:
    """What goes from one recursion to the next."""

    state: Leaf  # [B T D]
    chosen: Leaf  # [B T D] the state that the token stopped with
    log_left: Leaf  # [B T] log of the probability not to have stopped, float32
    steps: Leaf  # [B T]
    is_running: Leaf  # [B T]


def _recursion(gate: dict[str, Array], context: Context, config: ExitGate, call: Call) -> Callable:
    """Returns one recursion of all tokens, as `Stack.loop` takes it."""

    def step(walk: _Walk, recursion: Recursion, is_last: Array):
        y, made = recursion.run(recursion.enter(walk.state, context), context)
        seen = y if config.stage == 1 else jax.lax.stop_gradient(y)
        score = dot(seen.astype(jnp.float32), gate["weight"], "d,d->") + gate["bias"]
        log_p = walk.log_left + jnp.where(is_last, 0.0, jax.nn.log_sigmoid(score))
        log_left = walk.log_left + jax.nn.log_sigmoid(-score)
        stops = is_last
        if call.mode != "train":
            stops |= jnp.exp(log_left) <= 1 - config.exit_threshold
        walk = _Walk(
            state=y,
            chosen=jnp.where((walk.is_running & stops)[..., None], y, walk.chosen),
            log_left=log_left,
            steps=walk.steps + walk.is_running,
            is_running=walk.is_running & ~stops,
        )
        return walk, (y, score, log_p), made

    return step
