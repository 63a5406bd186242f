"""What every depth policy offers, what it is told and what it reports.

A policy is a module with

    Config                        a frozen dataclass with `num_recursions`
    SLOTS                         names of its own parameters that may vary along recursions
    specs(config, grid, embed_dim) -> parameters of its own (routers, gates)
    check(config, grid, kv, told) raises ValueError for what it cannot walk: a grid, a source of
                                  keys, or what recursions are told (an `inject.Config`)
    run(core, params, x, context, config, call) -> (x, Aux)
    exit_loss(config, exits, nats) -> a loss per token [B T] from the cross-entropy of the state
                                  after each recursion [R B T], for a policy whose Aux has `exits`
    after_step(config, params, metrics) -> params of its own after an update, for a policy that
                                  changes some without a gradient; from those the optimizer left
                                  and the step's metrics
    batch_losses(config)          names of weights in force of losses that are no sums over tokens,
                                  for a policy that has such losses
    at_depth(config, num_recursions) -> the config of a model that stops there
    at_step(config, step) -> the config of this training step; the trainer compiles one per value
    is_causal(config, mode)       whether a token's state is free of later tokens
    passes(config, grid, kv, seq_len) -> one `Pass` per recursion, for accounting
    score_flops(config, embed_dim) -> forward FLOPs of scoring one token in one recursion
    num_exits(config)             states that training reads through the head
"""

import dataclasses
from typing import Any, Literal

from flax import struct

from recursia.params import Leaf

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
      part: which microbatch of the step this is.
      state: what to start from, for a policy that starts from noise; None draws it.
      wanted: in causal mode, the tokens whose states will be read; None wants all.
    """

    mode: Mode = struct.field(pytree_node=False)
    step: Leaf | None = None  # []
    key: Leaf | None = None  # []
    part: Leaf = 0  # []
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
      exits: what the policy's `exit_loss` needs; None where it has no such loss.
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
    """What one recursion processes of a sequence, in tokens.

    Attributes:
      queries: tokens that the blocks process, fillers included.
      keys: tokens whose keys and values each of them meets, masked ones included.
      is_reading: whether those are another recursion's.
      scored: tokens that a router or gate scores first.
      times: how many recursions are like this; a mean where their number is drawn.
      is_trained: whether a backward pass follows.
      needed: of `queries`, those whose result is kept, as far as it is known ahead; None is all.
    """

    queries: int
    keys: int
    is_reading: bool
    scored: int
    times: float = 1
    is_trained: bool = True
    needed: int | None = None
