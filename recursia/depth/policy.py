"""The base of depth policies: how many recursions each token takes, and what they cost."""

import abc
import dataclasses
from typing import ClassVar, Literal

from flax import struct
from jaxtyping import Array, Bool, Float

from recursia import ranges
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.params import Leaf, Params
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

Mode = Literal["train", "eval", "causal"]


@struct.dataclass
class Call:
    """The mode, training step and random key of one forward pass.

    Attributes:
      mode: "train"; "eval", as published; "causal", as in decoding: each token decides without
        later ones, and recursions that no `wanted` token needs are left out.
      step: training step; None outside training.
      key: key of the step's random draws, the same for all its microbatches; with None, draws are
        the same in every call.
      microbatch: index of the microbatch in the step.
      state: initial state of a policy that starts from noise; None draws it.
      wanted: in causal mode, the tokens whose states will be read; None wants all.
    """

    mode: Mode = struct.field(pytree_node=False)
    step: Leaf | None = None  # []
    key: Leaf | None = None  # []
    microbatch: Leaf = 0  # []
    state: Leaf | None = None  # [B T D]
    wanted: Leaf | None = None  # [B T]

    def wants_any(self, tokens: Bool[Array, "B T"]) -> Bool[Array, ""]:
        """Returns whether any of some tokens is wanted."""
        return (tokens if self.wanted is None else self.wanted & tokens).any()


@struct.dataclass
class Aux:
    """Losses, metrics and early-exit states that a policy returns besides the hidden states.

    Attributes:
      losses: terms of the training loss in nats per token, times their weights.
      metrics: named scalars, or arrays with one entry per recursion.
      depth_used: number of recursions that each token took.
      states: hidden states after each recursion; None where only the last are kept.
      report: reports of blocks, by slot, over recursions and blocks.
      exit_weights: weight of the cross-entropy of each of `states`, which replaces that of the last
        state; None where training reads the last state alone through the head.
      exits: what `stopping_loss` reads; None for a policy without such a loss.
      scores: what each recursion of each token was decided by, as the policy's `run` says, NaN
        where it did not matter; None in training, and for a policy that decides by no such number.
    """

    losses: dict[str, Leaf]
    metrics: dict[str, Leaf]
    depth_used: Leaf  # [B T]
    states: Leaf | None  # [R B T D]
    report: Report = struct.field(default_factory=dict)  # [R K ...]
    exit_weights: Leaf | None = None  # [R B T]
    exits: dict[str, Leaf] | None = None
    scores: Leaf | None = None  # [R B T]


Result = tuple[States, Aux]


@dataclasses.dataclass(frozen=True)
class Pass:
    """Number of tokens of a sequence that one recursion processes, padding included.

    Attributes:
      recursion: index in the schedule of a recursion with the same blocks.
      queries: tokens that the blocks process.
      scored: tokens that a router or gate scores.
      times: number of recursions like this one; a mean where the number is drawn.
      is_trained: whether a backward pass follows.
      needed: of `queries`, tokens whose result is used, where an estimate exists; None is all.
      blocks: the blocks that are run; None is all.
    """

    recursion: int
    queries: int
    scored: int = 0
    times: int | float = 1
    is_trained: bool = True
    needed: int | None = None
    blocks: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """Base of depth policies; by itself it says that every token takes every recursion.

    A policy is a frozen dataclass of settings, one file in `recursia.depth`. Statistics over the
    tokens of a batch go through `recursia.batch.mean` or `total`: a plain mean gives another result
    on several devices.

    Attributes:
      num_recursions: most recursions of a token.
    """

    num_recursions: int

    slots: ClassVar[tuple[str, ...]] = ()  # slots of its own that may vary across recursions
    is_by_recursion: ClassVar[bool] = True  # whether it needs the state after each recursion
    shows_stopped: ClassVar[bool] = False  # whether later recursions show stopped tokens to others
    scales_branches: ClassVar[bool] = False  # whether it multiplies what blocks add to the stream
    is_layered: ClassVar[bool] = False  # whether every token takes every step once, in any mode
    is_uniform: ClassVar[bool] = False  # whether all tokens take the same recursions, in any mode

    def __post_init__(self):
        ranges.recursions(self)

    @property
    def kind(self) -> str:
        """The name of its module, with those of its packages where it is no file of this one."""
        package = Policy.__module__.rpartition(".")[0]
        return type(self).__module__.removeprefix(f"{package}.")

    @property
    def groups(self) -> tuple[int, ...]:
        """The group of blocks of each recursion; groups share no bank entries."""
        return (0,) * self.num_recursions

    @property
    def num_exits(self) -> int:
        """Number of states that training reads through the head."""
        return 1

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the specs of its own parameters, such as routers and gates."""
        return {}

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses models that the policy does not support.

        Args:
          schedule: of the core.
          coda: number of blocks after the core.
          inject: input injection of each recursion.

        Raises:
          ValueError: with the reason.
        """
        if self.is_by_recursion and schedule.order == "sequence":
            raise ValueError(
                f"depth: {self.kind} needs the state after each recursion, and sharing 'sequence' "
                "has none, as it runs block by block; take a cycle, or depth.kind 'fixed'"
            )
        if self.is_by_recursion and schedule.is_cyclic:
            raise ValueError(
                f"kv.kv_sharing: steps read the keys of later ones and run several times, and "
                f"depth {self.kind} needs every token's state after each recursion; take "
                "depth.kind 'fixed', or keys of earlier steps"
            )

        readers = filter(schedule.is_reader, range(schedule.num_recursions))
        if self.is_by_recursion and schedule.replays and (number := next(readers, None)):
            raise ValueError(
                f"kv.kv_sharing: recursion {number} replays queries and keys of an earlier one, "
                f"and under depth {self.kind} its tokens may be others; take depth.kind 'fixed', "
                "or queries and keys of the same recursion"
            )

    @property
    def is_incremental(self) -> bool:
        """Whether a token's depth depends on nothing that a KV cache does not hold."""
        return True

    def cache_places(self, schedule: Schedule, recursion: int, num_tokens: int) -> int:
        """Returns how many tokens of a text need a place in the KV caches of a recursion's steps.

        More are not lost: the cache is given more places, and the step is taken again.
        """
        return num_tokens

    def check_length(self, seq_len: int) -> None:  # noqa: B027 - most policies take every length
        """Refuses lengths of sequences that the policy does not support.

        Raises:
          ValueError: with both numbers.
        """

    @abc.abstractmethod
    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after the recursions, and losses and metrics.

        Args:
          stack: the core: the blocks between prelude and coda.
          params: of `specs`.
          x: hidden states that enter the core.
          context: positions, documents and padding of the tokens.
          call: the mode, step and key of the forward pass.
        """

    def stopping_loss(
        self, exits: dict[str, Array], nats: Float[Array, "R B T"]
    ) -> Float[Array, "B T"]:
        """Returns each token's loss of exit probabilities, besides its cross-entropy, in nats.

        Only for a policy whose `Aux` has `exits`.

        Args:
          exits: of `Aux`.
          nats: cross-entropy of the state after each recursion, without a gradient.
        """
        raise NotImplementedError

    def after_step(self, params: Params, metrics: dict[str, Array]) -> Params:
        """Returns its parameters after an update, some of which may change without a gradient.

        Args:
          params: as the optimizer updated them.
          metrics: of the step.
        """
        return params

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the names of nonzero loss weights whose loss is no sum over tokens."""
        return ()

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of a model that takes another number of recursions.

        Raises:
          ValueError: for a number that the policy does not support.
        """
        return dataclasses.replace(self, num_recursions=num_recursions)

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step; the trainer compiles one program for each."""
        return self

    def is_causal(self, mode: Mode) -> bool:
        """Returns whether no token's state depends on later tokens."""
        return True

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns the passes of a training step, for counting FLOPs."""
        return [Pass(r, seq_len) for r in range(schedule.num_recursions)]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of a router or gate for one token in one recursion."""
        return 0
