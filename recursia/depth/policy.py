"""What every depth policy offers, and what it reports.

A policy is a module with

    Config                        a frozen dataclass with `num_recursions`
    SLOTS                         names of its own parameters that may vary along recursions
    specs(config, grid, embed_dim) -> parameters of its own (routers, gates)
    check(config, grid)           raises ValueError for a grid it cannot walk
    run(core, params, x, context, config, *, mode, step) -> (x, Aux)
    at_depth(config, num_recursions) -> the config of a model that stops there
    at_step(config, step) -> the config of this training step; the trainer compiles one per value
    is_causal(config, mode)       whether a token's state is free of later tokens
    passes(config, grid, kv, seq_len) -> one `Pass` per recursion, for accounting
    score_flops(config, embed_dim) -> forward FLOPs of scoring one token in one recursion
"""

import dataclasses
from typing import Literal

from flax import struct

from recursia.params import Leaf

Mode = Literal["train", "eval", "causal"]


@struct.dataclass
class Aux:
    """What a policy reports besides the hidden states.

    Attributes:
      losses: terms of the training loss, already weighted, in nats per token.
      metrics: named scalars, or arrays with one entry per recursion.
      depth_used: recursions that each token took.
      states: hidden states after each recursion; None where recursions are not walked in turn.
    """

    losses: dict[str, Leaf]
    metrics: dict[str, Leaf]
    depth_used: Leaf  # [B T]
    states: Leaf | None  # [R B T D]


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one recursion processes of a sequence, in tokens.

    Attributes:
      queries: tokens that the blocks process.
      keys: tokens whose keys and values each of them meets, masked ones included.
      is_reading: whether those are another recursion's.
      scored: tokens that a router or gate scores first.
    """

    queries: int
    keys: int
    is_reading: bool
    scored: int
