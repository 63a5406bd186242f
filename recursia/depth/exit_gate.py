"""Early exit of looped language models: a gate gives the probability of stopping at each depth.

Zhu et al. 2025, arXiv 2510.25741. With l_t = sigmoid(w . h_t + b), a token stops after recursion t
with probability p_t = l_t prod_{j<t} (1 - l_j), and after the last one with the remaining
probability. Training takes all recursions, in two stages:

    1  model and gate, by sum_t p_t CE_t - entropy_weight H(p): a KL term to a uniform prior over
       depths, up to a constant
    2  the gate alone, by whether a recursion helped: with the improvement
       I_t = max(0, CE_{t-1} - CE_t), the target of going on, 1 - l_t, is
       sigmoid(slope (I_t - margin)), in a binary cross-entropy averaged over t = 2 .. R

Afterwards a token stops at the first t with p_1 + .. + p_t >= exit_threshold. A token that has
stopped is still computed, because others attend to it: no state depends on which other tokens stop.
In causal mode the loop ends when all wanted tokens have stopped.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from recursia import batch, ranges
from recursia.depth import gate
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.params import Leaf, Params
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import LoopBody, Stack


@dataclasses.dataclass(frozen=True)
class ExitGate(Policy):
    """A gate that learns where each token stops.

    Attributes:
      stage: of training: 1 trains model and gate, 2 the gate alone. In stage 2 set
        `optimizer.trainable` to "depth", or weight decay changes the other parameters.
      entropy_weight: of the entropy over depths in stage 1.
      slope: slope of the target of stage 2, per nat of improvement.
      margin: the improvement at which that target is 1/2, in nats.
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

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the gate, one for all recursions."""
        return {"gate": gate.specs(embed_dim)}

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses order "sequence" and codas: the head must read the states that the gate reads."""
        super().check(schedule, coda, inject)
        if coda:
            raise ValueError(
                f"depth: exit_gate reads every recursion's state through the head, and {coda} "
                "blocks of a coda stand between them; take coda 0"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the state that each token stopped with; in mode "train", the last.

        Its `Aux.scores` are the probabilities p_t of stopping after each recursion.
        """
        carry = _Carry(
            state=x,
            exit=x,
            log_left=jnp.zeros(x.shape[:2]),
            steps=jnp.zeros(x.shape[:2], jnp.int32),
            is_running=jnp.ones(x.shape[:2], bool),
        )
        step = _recursion(params["gate"], context, self, call)
        count = stack.schedule.num_recursions
        is_last = jnp.arange(count) == count - 1
        if call.mode == "causal":
            goes_on = lambda carry: call.wants_any(carry.is_running)
            carry = stack.loop_while(step, carry, is_last, goes_on)
            return carry.exit, Aux({}, {}, carry.steps, None)
        carry, (states, scores, log_p), report, _ = stack.loop(step, carry, is_last)
        p = jnp.exp(log_p)
        entropy = -(p * log_p).sum(0)
        mean = lambda values: batch.mean(values, (-2, -1), context.is_live)
        metrics = {"exit_probability": mean(p), "exit_entropy": mean(entropy)}
        weights, exits = None, None
        if call.mode == "train":
            exits = {"entropy": entropy} if self.stage == 1 else {"scores": scores}
            weights = p if self.stage == 1 else jnp.zeros_like(p)
        stops = None if call.mode == "train" else p
        return carry.exit, Aux({}, metrics, carry.steps, states, report, weights, exits, stops)

    def stopping_loss(
        self, exits: dict[str, Array], nats: Float[Array, "R B T"]
    ) -> Float[Array, "B T"]:
        """Returns minus the weighted entropy in stage 1, the binary cross-entropy in stage 2.

        Args:
          exits: the entropy of p in stage 1; the gate's logits w . h_t + b [R B T] in stage 2.
          nats: as in the base class.
        """
        if self.stage == 1:
            return -self.entropy_weight * exits["entropy"]
        gain = jnp.maximum(nats[:-1] - nats[1:], 0.0)
        goes_on = jax.nn.sigmoid(self.slope * (gain - self.margin))
        score = exits["scores"][1:]
        loss = goes_on * jax.nn.softplus(score) + (1 - goes_on) * jax.nn.softplus(-score)
        return loss.sum(0) / max(self.num_recursions - 1, 1)

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns a pass of all tokens per recursion: training reads the gate after each."""
        is_trained = self.stage == 1
        recursions = range(schedule.num_recursions)
        return [Pass(r, seq_len, scored=seq_len, is_trained=is_trained) for r in recursions]

    @property
    def num_exits(self) -> int:
        """Number of states that training reads through the head: all."""
        return self.num_recursions

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of the gate for one token after one recursion."""
        return gate.flops(embed_dim)


@struct.dataclass
class _Carry:
    """The carry of the loop."""

    state: Leaf  # [B T D]
    exit: Leaf  # [B T D] state that the token stopped with
    log_left: Leaf  # [B T] log of the probability of not having stopped, float32
    steps: Leaf  # [B T]
    is_running: Leaf  # [B T]


def _recursion(
    weights: dict[str, Array], context: Context, config: ExitGate, call: Call
) -> LoopBody:
    """Returns one recursion of all tokens."""

    def step(
        carry: _Carry, recursion: Recursion, is_last: Array
    ) -> tuple[_Carry, tuple[Array, Array, Array], RecursionOutput]:
        y, made = recursion.run(recursion.enter(carry.state, context), context)
        score = gate.logits(weights, y if config.stage == 1 else jax.lax.stop_gradient(y))
        log_p = carry.log_left + jnp.where(is_last, 0.0, jax.nn.log_sigmoid(score))
        log_left = carry.log_left + jax.nn.log_sigmoid(-score)
        stops = is_last
        if call.mode != "train":
            stops |= jnp.exp(log_left) <= 1 - config.exit_threshold
        carry = _Carry(
            state=y,
            exit=jnp.where((carry.is_running & stops)[..., None], y, carry.exit),
            log_left=log_left,
            steps=carry.steps + carry.is_running.astype(jnp.int32),
            is_running=carry.is_running & ~stops,
        )
        return carry, (y, score, log_p), made

    return step
