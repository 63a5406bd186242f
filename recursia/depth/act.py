"""Adaptive computation time: a token halts when its halting probabilities add up to nearly 1.

Graves 2016, arXiv 1603.08983, for each position as in the Universal Transformer (Dehghani et al.
2018, arXiv 1807.03819). Recursion t enters with the state s, takes p = sigmoid(w . s + b), and
makes the next s. A token whose probabilities would exceed 1 - epsilon halts in that recursion. The
weight u of a state is its p, and of the last state the remainder R = 1 - sum p. The output is

    S <- u s + (1 - u) S    "basic", as published: the weights of the states sum to less than 1
    S <- S + u s            "accumulated", as in Graves: the weights sum to 1

A token that never halts has no remainder. All recursions are computed for all tokens. Each token
decides alone, so every mode is causal. In causal mode the loop ends when all wanted tokens have
halted.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from recursia import batch, ranges
from recursia.depth import gate
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.params import Leaf, Params
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import LoopBody, Stack


@dataclasses.dataclass(frozen=True)
class Act(Policy):
    """Adaptive computation time.

    Attributes:
      update: how a state s of weight u changes the output S: "basic", u s + (1 - u) S, as
        published; or "accumulated", S + u s.
      halted_state: the state of a halted token in later recursions, which other tokens attend to:
        "live", changed by each recursion, as released; or "copied", the state it halted with, as in
        the paper, plus what is injected.
      epsilon: 1 minus the sum of probabilities at which a token halts.
      act_loss_weight: of the ponder cost, the mean over tokens of recursions plus remainder; only
        the remainder has a gradient.
      halt_bias_init: bias of the halting unit at the start. With 1, tokens halt after about two
        recursions; with -3 they start deep.
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

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the halting unit, one for all recursions."""
        return {"halt": gate.specs(embed_dim, self.halt_bias_init)}

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the output S; the modes differ only in when the loop ends.

        Its `Aux.scores` are the halting probabilities in each recursion that a token takes.
        """
        zero = jnp.zeros(x.shape[:2])
        carry = _Carry(
            state=x,
            output=jnp.zeros(x.shape),
            total=zero,
            remainder=zero,
            steps=jnp.zeros(x.shape[:2], jnp.int32),
            is_running=jnp.ones(x.shape[:2], bool),
        )
        step = _recursion(params["halt"], context, self, call)
        states, report, scores = None, {}, None
        if call.mode == "causal":
            goes_on = lambda carry: call.wants_any(carry.is_running)
            carry = stack.loop_while(step, carry, None, goes_on)
        else:
            carry, (states, scores), report, _ = stack.loop(step, carry)
        steps = carry.steps.astype(jnp.float32)
        mean = lambda values: batch.mean(values, (0, 1), context.is_live)
        metrics = {
            "ponder_steps": mean(steps),
            "ponder_remainder": mean(carry.remainder),
            "halted": mean((~carry.is_running).astype(jnp.float32)),
        }
        losses = {"ponder": self.act_loss_weight * mean(steps + carry.remainder)}
        aux = Aux(losses, metrics, carry.steps, states, report, scores=scores)
        return carry.output.astype(x.dtype), aux

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns a pass of all tokens per recursion: training computes halted tokens too."""
        return [Pass(r, seq_len, scored=seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of the halting unit for one token in one recursion."""
        return gate.flops(embed_dim)


@struct.dataclass
class _Carry:
    """The carry of the loop; sums are float32."""

    state: Leaf  # [B T D]
    output: Leaf  # [B T D] S, float32
    total: Leaf  # [B T] sum of the probabilities before the halt
    remainder: Leaf  # [B T]
    steps: Leaf  # [B T]
    is_running: Leaf  # [B T]


def _recursion(halt: dict[str, Array], context: Context, config: Act, call: Call) -> LoopBody:
    """Returns one recursion of all tokens."""
    is_copied = config.halted_state == "copied"

    def step(
        carry: _Carry, recursion: Recursion, _: None
    ) -> tuple[_Carry, tuple[States, Array | None], RecursionOutput]:
        running = carry.is_running
        live = context.count_only(running) if is_copied else context
        x = recursion.enter(carry.state, live)
        p = jax.nn.sigmoid(gate.logits(halt, x))
        score = None if call.mode == "train" else jnp.where(running, p, jnp.nan)
        goes_on = running & (carry.total + p <= 1 - config.epsilon)
        remainder = jnp.where(running & ~goes_on, 1 - carry.total, 0.0)
        p = jnp.where(goes_on, p, 0.0)
        y, made = recursion.run(x, live)
        weight = (p + remainder)[..., None]
        decay = 1 - weight if config.update == "basic" else 1.0
        output = weight * y.astype(jnp.float32) + decay * carry.output
        carry = _Carry(
            state=jnp.where(running[..., None], y, carry.state) if is_copied else y,
            output=output,
            total=carry.total + p,
            remainder=carry.remainder + remainder,
            steps=carry.steps + running.astype(jnp.int32),
            is_running=goes_on,
        )
        return carry, (output.astype(x.dtype), score), made

    return step
