"""Stick-breaking halting: after each recursion a share of a token's remaining probability halts.

The halting of the Sparse Universal Transformer (Tan et al. 2023, arXiv 2310.07096). The result is
the expected state of a token over the recursion in which it halts. Keys and values are made of the
expected state too, queries and residuals of the state that has not halted. A token stops when its
probability of not having halted is below `1 - threshold`: its expected state is then final, and its
results in later recursions are discarded.

Published for one block per recursion. With several, block k makes its keys and values of the
expected state over the halts before this recursion and the state at block k.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from recursia import batch, ranges
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.layers.initial import uniform
from recursia.layers.linear import dot
from recursia.params import Leaf, Params, Spec
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack


@dataclasses.dataclass(frozen=True)
class StickBreaking(Policy):
    """Stick-breaking halting.

    Attributes:
      threshold: probability of having halted at which a token stops; 1 stops none. A lower one at
        evaluation than in training saves recursions.
      act_loss_weight: of the ponder cost: the expected number of recursions after the first, a mean
        over tokens.
    """

    shows_stopped = True

    threshold: float = 0.999
    act_loss_weight: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: got {self.threshold}, takes more than 0, to 1")
        ranges.at_least(0, self, "act_loss_weight")

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the gate: a hidden layer, then logits of going on and halting, 0 at the start."""
        d, init = embed_dim, uniform(embed_dim**-0.5)
        return {
            "hidden": Spec((d, d), ("embed", None), init),
            "bias": Spec((d,), (None,), init, is_decayed=False),
            "out": Spec((d, 2), ("embed", None), jax.nn.initializers.zeros),
        }

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses order "sequence", and steps that read the keys and values of others."""
        super().check(schedule, coda, inject)
        if not schedule.makes_all_keys:
            raise ValueError(
                "kv.kv_sharing: stick_breaking makes the keys and values of every step of the "
                "expected states at that step, and a step here reads those of another; take 'own'"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the expected states; in causal mode the loop ends once all wanted tokens stop.

        Its `Aux.scores` are the probabilities of not having halted before each recursion.
        """
        is_read = call.mode != "train"

        def step(
            stick: Stick, recursion: Recursion, _: None
        ) -> tuple[Stick, tuple[Array, Array, Array | None], RecursionOutput]:
            going = is_going(stick, self)
            share = jnp.where(going, jnp.exp(stick.log_left), 0.0)[..., None]
            score = jnp.exp(stick.log_left) if is_read else None
            live = context.count_only(going)
            entered = recursion.enter(stick.state, live)
            y, made = recursion.run(entered, live, memory(stick, entered, going, share))
            stick = advance(stick, y, going, share, gate(params, y))
            return stick, (stick.expected, going.astype(jnp.float32), score), made

        mean = lambda values, over: batch.mean(values, over, context.is_live)
        if call.mode == "causal":
            goes_on = lambda stick: call.wants_any(is_going(stick, self))
            stick = stack.loop_while(step, begin(x), None, goes_on)
            states, report, metrics, scores = None, {}, {}, None
        else:
            stick, (states, kept, scores), report, _ = stack.loop(step, begin(x))
            expected = 1 + mean(stick.ponder, (0, 1))
            metrics = {"tokens_kept": mean(kept, (1, 2)), "expected_depth": expected}
        losses = {"halting": self.act_loss_weight * mean(stick.ponder, (0, 1))}
        aux = Aux(losses, metrics, stick.used, states, report, scores=scores)
        return stick.expected, aux

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns a pass of all tokens per recursion: training computes stopped tokens too."""
        return [Pass(r, seq_len, scored=seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of the gate for one token in one recursion."""
        return 2 * embed_dim**2 + 4 * embed_dim


@struct.dataclass
class Stick:
    """The carry of the loop; sums are float32.

    Attributes:
      state: of a token that has not halted.
      expected: expected state.
      halted: sum over past recursions of the state times the probability of halting there.
      log_left: log of the probability of not having halted.
      depth: sum over past recursions of their index times the probability of halting there.
      ponder: `depth` plus the share that had not halted, times the index of the last recursion.
      used: number of recursions that the token took.
      index: of the next recursion, from 0.
    """

    state: Leaf  # [B T D]
    expected: Leaf  # [B T D]
    halted: Leaf  # [B T D]
    log_left: Leaf  # [B T]
    depth: Leaf  # [B T]
    ponder: Leaf  # [B T]
    used: Leaf  # [B T]
    index: Leaf  # []


def begin(x: States) -> Stick:
    """Returns the carry before the first recursion, in which nothing has halted."""
    zero = jnp.zeros(x.shape[:2])
    count = jnp.zeros(x.shape[:2], jnp.int32)
    return Stick(x, x, jnp.zeros(x.shape), zero, zero, zero, count, jnp.int32(0))


def is_going(stick: Stick, config: StickBreaking) -> Bool[Array, "B T"]:
    """Returns which tokens take the next recursion; one that does not never does again."""
    return jnp.exp(stick.log_left) >= 1 - config.threshold


def memory(
    stick: Stick,
    entered: States,
    going: Bool[Array, "B T"],
    share: Float[Array, "B T 1"],
) -> Callable[[Array], Array]:
    """Returns the function from the states before a block to those that keys are made of.

    What is injected, the difference of `entered` from the state, is added to halted states too.
    """
    halted = jnp.where(going[..., None], stick.halted, stick.expected.astype(jnp.float32))
    halted += (1 - share) * (entered - stick.state).astype(jnp.float32)
    return lambda x: (halted + share * x.astype(jnp.float32)).astype(x.dtype)


def gate(params: Params, x: States) -> Float[Array, "B T 2"]:
    """Returns the log-probabilities of going on and of halting, in float32."""
    h = dot(x.astype(jnp.float32), params["hidden"], "d,de->e") + params["bias"]
    return jax.nn.log_softmax(dot(jax.nn.gelu(h, approximate=False), params["out"], "d,de->e"))


def advance(
    stick: Stick,
    y: States,
    going: Bool[Array, "B T"],
    share: Float[Array, "B T 1"],
    log_gate: Float[Array, "B T 2"],
) -> Stick:
    """Returns the stick after a recursion.

    Args:
      stick: before the recursion.
      y: states after the recursion.
      going: tokens that take the recursion.
      share: probability of not having halted before it; 0 for a token that does not take it.
      log_gate: `gate` of `y`.
    """
    exact = y.astype(jnp.float32)
    expected = (stick.halted + share * exact).astype(y.dtype)
    breaks = jnp.exp(stick.log_left + log_gate[..., 1])
    index = stick.index.astype(jnp.float32)
    return Stick(
        state=y,
        expected=jnp.where(going[..., None], expected, stick.expected),
        halted=stick.halted + breaks[..., None] * exact,
        log_left=stick.log_left + log_gate[..., 0],
        depth=stick.depth + index * breaks,
        ponder=stick.depth + index * share[..., 0],
        used=stick.used + going.astype(jnp.int32),
        index=stick.index + 1,
    )
