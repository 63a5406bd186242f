"""Each token adds up halting probabilities and stops near 1: adaptive computation time.

Graves 2016, arXiv 1603.08983, for each position as in the Universal Transformer (Dehghani et al.
2018, arXiv 1807.03819). Recursion t enters with the state s, takes p = sigmoid(w . s + b), and
makes the next s. A token whose probabilities would pass 1 - epsilon halts there. It weighs
its states by u, the probabilities with the remainder R = 1 - sum p for the last. What it gives is

    S <- u s + (1 - u) S    "basic", as published: the weights of the states sum to less than 1
    S <- S + u s            "accumulated", as in Graves: they sum to 1

A token that never halts has no remainder. All recursions are computed for all tokens: each decides
alone, so every mode is causal. In causal mode the loop ends when all wanted tokens have halted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from recursia import batch, ranges
from recursia.depth.policy import Aux, Call, Pass, Policy
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.params import Leaf, Spec, normal
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Recursion, Stack

INIT_STD = 0.02  # of the halting unit's weight


@dataclasses.dataclass(frozen=True)
class Act(Policy):
    """Adaptive computation time.

    Attributes:
      update: how a state s of weight u enters what a token gives, S: "basic", u s + (1 - u) S, as
        published; or "accumulated", S + u s.
      halted_state: what later recursions do with a halted token: "live" go on changing its state,
        which others attend to, as released; "copied" keep the state it halted with, as the paper
        says, and add to it only where they stand, before others attend to it.
      epsilon: how far below 1 the sum of probabilities may halt.
      act_loss_weight: of the mean over tokens of recursions plus remainder; only the remainder has
        a gradient.
      halt_bias_init: bias of the halting unit at the start. 1 halts after about two recursions;
        -3 starts deep, for where training would stay with two.
    """

    shows_stopped = True

    update: Literal["basic", "accumulated"] = "basic"
    halted_state: Literal["live", "copied"] = "live"
    epsilon: float = 0.01
    act_loss_weight: float = 0.01
    halt_bias_init: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon: got {self.epsilon}, takes a number between 0 and 1")
        ranges.at_least(0, self, "act_loss_weight")

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns the halting unit, one for all recursions."""
        bias = jax.nn.initializers.constant(self.halt_bias_init)
        weight = Spec((embed_dim,), ("embed",), normal(INIT_STD))
        return {"halt": {"weight": weight, "bias": Spec((), (), bias, is_decayed=False)}}

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the weighted states; the modes differ only in when the loop ends."""
        none = jnp.zeros(x.shape[:2])
        start = _Walk(
            state=x,
            output=jnp.zeros(x.shape),
            total=none,
            remainder=none,
            steps=jnp.zeros(x.shape[:2], jnp.int32),
            is_running=jnp.ones(x.shape[:2], bool),
        )
        step = _recursion(params["halt"], context, self)
        states, report = None, {}
        if call.mode == "causal":
            wanted = True if call.wanted is None else call.wanted
            walk = stack.loop_while(
                step, start, None, lambda walk: (walk.is_running & wanted).any()
            )
        else:
            walk, states, report, _ = stack.loop(step, start)
        steps = walk.steps.astype(jnp.float32)
        mean = lambda values: batch.mean(values, (0, 1), context.is_live)
        metrics = {
            "ponder_steps": mean(steps),
            "ponder_remainder": mean(walk.remainder),
            "halted": mean((~walk.is_running).astype(jnp.float32)),
        }
        losses = {"ponder": self.act_loss_weight * mean(steps + walk.remainder)}
        return walk.output.astype(x.dtype), Aux(losses, metrics, walk.steps, states, report)

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy with another most; a token still going then has no remainder."""
        return dataclasses.replace(self, num_recursions=num_recursions)

    def at_step(self, step: int) -> "Policy":
        """Returns the policy itself: training steps do not differ."""
        return self

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns one full pass per recursion: training computes halted tokens too."""
        return [Pass(r, seq_len, scored=seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of scoring one token in one recursion."""
        return 2 * embed_dim


@struct.dataclass
class _Walk:
    """What goes from one recursion to the next; sums are float32."""

    state: Leaf  # [B T D]
    output: Leaf  # [B T D] S, float32
    total: Leaf  # [B T] of the probabilities before the halt
    remainder: Leaf  # [B T]
    steps: Leaf  # [B T]
    is_running: Leaf  # [B T]


def _recursion(halt: dict[str, Array], context: Context, config: Act) -> Callable:
    """Returns one recursion of all tokens, as `Stack.loop` takes it."""
    is_copied = config.halted_state == "copied"

    def step(walk: _Walk, recursion: Recursion, _: None):
        running = walk.is_running
        here = context.count_only(running) if is_copied else context
        x = recursion.enter(walk.state, here)
        p = jax.nn.sigmoid(dot(x.astype(jnp.float32), halt["weight"], "d,d->") + halt["bias"])
        goes_on = running & (walk.total + p <= 1 - config.epsilon)
        rest = jnp.where(running & ~goes_on, 1 - walk.total, 0.0)
        p = jnp.where(goes_on, p, 0.0)
        y, made = recursion.run(x, here)
        share = (p + rest)[..., None]
        kept = 1 - share if config.update == "basic" else 1.0
        output = share * y.astype(jnp.float32) + kept * walk.output
        walk = _Walk(
            state=jnp.where(running[..., None], y, walk.state) if is_copied else y,
            output=output,
            total=walk.total + p,
            remainder=walk.remainder + rest,
            steps=walk.steps + running.astype(jnp.int32),
            is_running=goes_on,
        )
        return walk, output.astype(x.dtype), made

    return step
