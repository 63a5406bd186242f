"""What a depth policy is, what it is told of a pass and what it reports."""

import dataclasses
from typing import Any, ClassVar, Literal

from flax import struct
from jaxtyping import Array, Float

from recursia import injection, ranges
from recursia.layers.attention import Context
from recursia.params import Leaf
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

Mode = Literal["train", "eval", "causal"]


@struct.dataclass
class Call:
    """One forward pass, as a policy is told of it.

    Attributes:
      mode: "train"; "eval", as published; "causal", as decoding decides: each token alone, and
        nothing is computed that no `wanted` token needs.
      step: of training; None outside it.
      key: of the step's random draws, the same for all its microbatches; None draws the same
        numbers every time.
      microbatch: which microbatch of the step this is.
      state: what to start from, for a policy that starts from noise; None draws it.
      wanted: in causal mode, the tokens whose states will be read; None wants all.
    """

    mode: Mode = struct.field(pytree_node=False)
    step: Leaf | None = None  # []
    key: Leaf | None = None  # []
    microbatch: Leaf = 0  # []
    state: Leaf | None = None  # [B T D]
    wanted: Leaf | None = None  # [B T]


@struct.dataclass
class Aux:
    """What a policy reports besides the hidden states.

    Attributes:
      losses: terms of the training loss, already weighted, in nats per token.
      metrics: named scalars, or arrays with one entry per recursion.
      depth_used: recursions that each token took.
      states: hidden states after each recursion; None where recursions are not walked in turn.
      report: what blocks reported, by slot, over recursions and blocks.
      exit_weights: where training reads every one of `states` through the head, the weight of each
        one's cross-entropy; it replaces that of the last state.
      exits: what the policy's `stopping_loss` needs; None where it has no such loss.
    """

    losses: dict[str, Leaf]
    metrics: dict[str, Leaf]
    depth_used: Leaf  # [B T]
    states: Leaf | None  # [R B T D]
    report: dict[str, Any] = struct.field(default_factory=dict)  # [R K ...]
    exit_weights: Leaf | None = None  # [R B T]
    exits: Any = None


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one recursion processes of a sequence, in tokens; fillers count too.

    Attributes:
      recursion: which of the schedule it is, or is like.
      queries: tokens that the blocks process.
      scored: tokens that a router or gate scores first.
      times: how many recursions are like this; a mean where their number is drawn.
      is_trained: whether a backward pass follows.
      needed: of `queries`, those whose result is kept, as far as it is known ahead; None is all.
    """

    recursion: int
    queries: int
    scored: int = 0
    times: float = 1
    is_trained: bool = True
    needed: int | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """Base of depth policies: how often each token goes round, and what that costs.

    A policy is a frozen dataclass of settings, one file in `recursia.depth`. It says what differs
    from here, and nothing else. Whatever it reports over the tokens of a batch goes through
    `recursia.batch.mean` or `total`: a plain mean differs on several devices.

    Attributes:
      num_recursions: how often a token goes round, at most.
    """

    num_recursions: int

    slots: ClassVar[tuple[str, ...]] = ()  # its own parameters that may vary along recursions
    is_by_recursion: ClassVar[bool] = True  # whether it needs recursions walked one after the other
    shows_stopped: ClassVar[bool] = False  # whether later recursions show stopped tokens to others

    def __post_init__(self):
        ranges.recursions(self)

    @property
    def groups(self) -> tuple[int, ...]:
        """For each recursion, which group of blocks it takes: groups share no entries."""
        return (0,) * self.num_recursions

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns its own parameters, such as routers and gates."""
        return {}

    def check(self, schedule: Schedule, coda: int, inject: injection.Injection) -> None:
        """Refuses what it cannot walk.

        Args:
          schedule: of the core.
          coda: blocks after the core.
          inject: what is injected at each recursion.

        Raises:
          ValueError: with the reason.
        """
        if self.is_by_recursion and schedule.order == "sequence":
            raise ValueError(
                f"depth: {self.kind} decides after a whole recursion, and sharing 'sequence' has "
                "none: its walk is block by block; take a cycle, or depth.kind 'fixed'"
            )

    @property
    def is_incremental(self) -> bool:
        """Whether a token's depth depends on nothing that a KV cache does not hold."""
        return True

    def cache_places(self, schedule: Schedule, recursion: int, num_tokens: int) -> int:
        """Returns how many tokens of a text need a place in a KV cache of this recursion's steps.

        What comes beyond is not lost: the cache is given more places, and the step taken again.
        """
        return num_tokens

    def check_length(self, seq_len: int) -> None:
        """Refuses sequences of a length that it cannot split.

        Raises:
          ValueError: with both numbers.
        """

    @property
    def kind(self) -> str:
        """The name of its file, as `depth.kind` takes it."""
        return type(self).__module__.rpartition(".")[2]

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the states after the recursions, and what it reports.

        Args:
          stack: the blocks between prelude and coda.
          params: of `specs`.
          x: hidden states of all tokens.
          context: where they stand.
          call: which pass this is.
        """
        raise NotImplementedError

    def stopping_loss(self, exits: Any, nats: Float[Array, "R B T"]) -> Float[Array, "B T"]:
        """Returns what a token's stopping costs besides its expected cross-entropy, in nats.

        Only for a policy whose `Aux` has `exits`.

        Args:
          exits: of that `Aux`.
          nats: cross-entropy of the state after each recursion, without a gradient.
        """
        raise NotImplementedError

    def after_step(self, params: dict[str, Any], metrics: dict[str, Array]) -> dict[str, Any]:
        """Returns its parameters after an update, where some change without a gradient.

        Args:
          params: those that the optimizer left.
          metrics: of the step.
        """
        return params

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weights in force of losses that are no sums over tokens."""
        return ()

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of a model that stops, or goes on, after `num_recursions`.

        Raises:
          ValueError: for a depth that it cannot take.
        """
        return dataclasses.replace(self, num_recursions=num_recursions)

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step; the trainer compiles one program for each."""
        return self

    def is_causal(self, mode: Mode) -> bool:
        """Returns whether a token's state is free of later tokens."""
        return True

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns what each recursion of a training step processes, for accounting."""
        return [Pass(r, seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of scoring one token in one recursion."""
        return 0

    @property
    def num_exits(self) -> int:
        """States that training reads through the head."""
        return 1
