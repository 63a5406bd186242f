"""Each token halts by breaking a stick: what is left of it goes on to the next recursion.

The halting of the Sparse Universal Transformer (Tan et al. 2023, arXiv 2310.07096). After each
recursion a gate halts a share of what is left of a token; the policy's result is the state that
the token is expected to have, over the recursions where it halts. Other tokens' attention sees the
same expectation: keys and values are made of it, queries and residuals of the state that goes on.
A token of which less than `1 - threshold` is left stops: its expectation stays as it is, and its
block's results are thrown away.

Published for one block a recursion. With several, block k makes its keys and values of what the
token is expected to be if it halted before, and is at this block if not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from recursia import batch, injection, ranges
from recursia.depth.policy import Aux, Call, Pass, Policy
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.params import Leaf, Spec
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Recursion, Stack


@dataclasses.dataclass(frozen=True)
class StickBreaking(Policy):
    """Stick-breaking halting.

    Attributes:
      threshold: a token stops once this much of it has halted; 1 stops none. Less at evaluation
        than in training saves recursions.
      act_loss_weight: of the expected number of recursions that follow the first, a mean over
        tokens.
    """

    shows_stopped = True

    threshold: float = 0.999
    act_loss_weight: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: got {self.threshold}, takes more than 0, to 1")
        ranges.at_least(0, self, "act_loss_weight")

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns the gate: a hidden layer, and logits of going on and halting, both 0 first."""
        d, bound = embed_dim, embed_dim**-0.5
        init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
        return {
            "hidden": Spec((d, d), ("embed", None), init),
            "bias": Spec((d,), (None,), init, is_decayed=False),
            "out": Spec((d, 2), ("embed", None), jax.nn.initializers.zeros),
        }

    def check(self, schedule: Schedule, coda: int, inject: injection.Injection) -> None:
        """Refuses a walk block by block, and keys of the first recursion.

        Raises:
          ValueError: for order "sequence" or kv_sharing "first_recursion".
        """
        super().check(schedule, coda, inject)
        if not schedule.makes_all_keys:
            raise ValueError(
                "kv.kv_sharing: a step that reads another's keys reads those of states that no "
                "token has halted with, and stick_breaking makes them of the expected state anew; "
                "take 'own'"
            )

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the expected states.

        Args:
          stack: the core.
          params: the gate.
          x: hidden states of all tokens.
          context: where they stand.
          call: modes "train" and "eval" do not differ; "causal" gives the same, and stops when all
            wanted tokens have.
        """

        def step(stick: Stick, recursion: Recursion, _: None):
            going = is_going(stick, self)
            share = jnp.where(going, jnp.exp(stick.log_left), 0.0)[..., None]
            there = context.count_only(going)
            entered = recursion.enter(stick.state, there)
            mean = memory(stick, entered, going, share)
            y, made = recursion.run(entered, there, mean)
            stick = advance(stick, y, going, share, gate(params, y))
            return stick, (stick.expected, going.astype(jnp.float32)), made

        start, mean = begin(x), lambda values, over: batch.mean(values, over, context.is_live)
        if call.mode == "causal":
            wanted = jnp.ones(x.shape[:2], bool) if call.wanted is None else call.wanted
            goes_on = lambda stick: (is_going(stick, self) & wanted).any()
            stick = stack.loop_while(step, start, None, goes_on)
            states, report, metrics = None, {}, {}
        else:
            stick, (states, kept), report, _ = stack.loop(step, start)
            expected = 1 + mean(stick.ponder, (0, 1))
            metrics = {"tokens_kept": mean(kept, (1, 2)), "expected_depth": expected}
        losses = {"halting": self.act_loss_weight * mean(stick.ponder, (0, 1))}
        return stick.expected, Aux(losses, metrics, stick.used, states, report)

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of another depth: the gate is the same for all."""
        return dataclasses.replace(self, num_recursions=num_recursions)

    def at_step(self, step: int) -> "Policy":
        """Returns the policy itself: training steps do not differ."""
        return self

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns one full pass per recursion, as training runs them: halted tokens are masked."""
        return [Pass(r, seq_len, scored=seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of one token's gate."""
        return 2 * embed_dim**2 + 4 * embed_dim


@struct.dataclass
class Stick:
    """What goes from one recursion to the next; sums are float32.

    Attributes:
      state: of the part that goes on.
      expected: state of the token.
      halted: sum of the states that parts halted with, times the parts.
      log_left: log of what has not halted.
      depth: sum of the recursions after the first that halted parts took, times the parts.
      ponder: `depth` with what is left, as of the last recursion.
      used: recursions that took the token.
      index: of the next recursion.
    """

    state: Leaf  # [B T D]
    expected: Leaf  # [B T D]
    halted: Leaf  # [B T D]
    log_left: Leaf  # [B T]
    depth: Leaf  # [B T]
    ponder: Leaf  # [B T]
    used: Leaf  # [B T]
    index: Leaf  # []


def begin(x: Float[Array, "B T D"]) -> Stick:
    """Returns whole sticks."""
    zero = jnp.zeros(x.shape[:2])
    count = jnp.zeros(x.shape[:2], jnp.int32)
    return Stick(x, x, jnp.zeros(x.shape), zero, zero, zero, count, jnp.int32(0))


def is_going(stick: Stick, config: StickBreaking) -> Bool[Array, "B T"]:
    """Returns which tokens take the next recursion; a token that does not never will again."""
    return jnp.exp(stick.log_left) >= 1 - config.threshold


def memory(
    stick: Stick,
    entered: Float[Array, "B T D"],
    going: Bool[Array, "B T"],
    share: Float[Array, "B T 1"],
) -> Callable[[Array], Array]:
    """Returns the function from the states before a block to those that keys are made of.

    What a recursion is entered (`entered` is the state with it) is added to halted parts, too.
    """
    halted = jnp.where(going[..., None], stick.halted, stick.expected)
    halted += (1 - share) * (entered - stick.state)
    return lambda x: (halted + share * x).astype(x.dtype)


def gate(params: dict[str, Any], x: Float[Array, "B T D"]) -> Float[Array, "B T 2"]:
    """Returns the log-probabilities that a token's rest goes on, and halts, in float32."""
    h = dot(x.astype(jnp.float32), params["hidden"], "d,de->e") + params["bias"]
    return jax.nn.log_softmax(dot(jax.nn.gelu(h, approximate=False), params["out"], "d,de->e"))


def advance(
    stick: Stick,
    y: Float[Array, "B T D"],
    going: Bool[Array, "B T"],
    share: Float[Array, "B T 1"],
    log_gate: Float[Array, "B T 2"],
) -> Stick:
    """Returns the stick after a recursion.

    Args:
      stick: before it.
      y: what it gave.
      going: tokens that take it.
      share: of each token, what takes it; 0 for a token that does not.
      log_gate: of `gate(y)`.
    """
    expected = (stick.halted + share * y).astype(y.dtype)
    breaks = jnp.exp(stick.log_left + log_gate[..., 1])
    return Stick(
        state=y,
        expected=jnp.where(going[..., None], expected, stick.expected),
        halted=stick.halted + breaks[..., None] * y,
        log_left=stick.log_left + log_gate[..., 0],
        depth=stick.depth + stick.index * breaks,
        ponder=stick.depth + stick.index * share[..., 0],
        used=stick.used + going,
        index=stick.index + 1,
    )
