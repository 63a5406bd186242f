"""The table of a training sequence's steps, and the FLOPs of its blocks, in closed form."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from recursia import params
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.depth.policy import Pass
from recursia.kernels.routed_attention import tiles
from recursia.layers.attention import Context
from recursia.params import Params
from recursia.traced_flops import count_flops

# FLOPs of one token in a block, of the number of keys that its query meets and whether another
# step made them.
TokenFlops = Callable[[Block, int | float, bool], int | float]


@dataclasses.dataclass(frozen=True)
class Step:
    """What one block of a recursion processes of a sequence, in tokens.

    Attributes:
      block: what it applies; a part of the model's where steps have different widths.
      queries: tokens that the block processes.
      keys: keys that each query meets, masked ones included, and those of a prefix.
      skipped: of those keys, how many are in tiles that are not multiplied; a mean over queries.
      cached: numbers that decoding keeps, of the keys and values that the step makes.
      is_reading: whether another step made the keys that the queries meet.
      times: how many recursions are like this, each parallel copy of the model counted; a mean
        where their number is drawn.
      is_trained: whether a backward pass follows.
    """

    block: Block
    queries: int
    keys: int
    skipped: float
    cached: int
    is_reading: bool
    times: int | float
    is_trained: bool


def passes_of(config: Model, seq_len: int) -> list[Pass]:
    """Returns the recursions of a training sequence of `seq_len` tokens.

    Steps that read the keys of later ones are run again, and counted as recursions of these alone.
    """
    plan, found = config.schedule, config.depth.passes(config.schedule, seq_len)
    free, trained = plan.passes
    for start, stop, is_cycle in plan.segments:
        recursion, block = np.divmod(plan.steps[start:stop], plan.num_blocks)
        for number in np.unique(recursion) if is_cycle else ():
            blocks = tuple(block[recursion == number].tolist())
            again = functools.partial(Pass, int(number), seq_len, blocks=blocks)
            found = [*found, again(times=free, is_trained=False), again(times=trained - 1)]
    return found


def steps_of(config: Model, seq_len: int, chosen: list[Pass]) -> list[Step]:
    """Returns the steps of some recursions of a sequence of `seq_len` tokens.

    A step that reads the keys of another meets those of all tokens which that step processes.
    """
    plan = config.schedule
    tokens = {each.recursion: each.queries for each in (*passes_of(config, seq_len), *chosen)}
    is_relative, copies = config.block.mixer.has_relative, config.parallel
    is_later = (plan.read_places < 0)[np.argsort(plan.steps)]
    table = []
    for each in chosen:
        first = each.recursion * plan.num_blocks
        for block in range(plan.num_blocks) if each.blocks is None else each.blocks:
            step = first + block
            owner = int(plan.owners[step])
            keys = each.queries if owner == step else tokens[owner // plan.num_blocks]
            part = config.step_blocks[step]
            wide, both = part.mixer.key_width, part.cache_entries()
            held = _bound(keys, plan.seen[plan.owners == step]) if owner == step else 0
            own = _bound(each.queries, plan.seen[[step]]) if plan.replays else held
            cached = held * wide + own * (both - wide)
            is_by_place = each.queries == seq_len and not is_later[step]
            is_by_place |= not (owner != step or plan.seen[step] or is_relative)
            skipped = skipped_keys(each.queries, keys, int(plan.seen[step])) if is_by_place else 0
            met = each.queries, keys + copies.num_keys, skipped, cached, owner != step
            table.append(Step(part, *met, each.times * copies.num_copies, each.is_trained))
    return table


def _bound(tokens: int, windows: Int[np.ndarray, "N"]) -> int:
    """Returns of how many tokens readers with these windows see anything, at most."""
    return int(min(tokens, windows.max())) if windows.all() else tokens


def skipped_keys(queries: int, keys: int, window: int = 0) -> float:
    """Returns how many keys of a query are in wholly masked tiles, a mean over the queries.

    The queries and keys are told apart by their places; the tiles are those of the reference path.
    """
    return keys - tiles.pairs(queries, keys, window) / queries if queries else 0.0


def skipped_flops(
    config: Model, seq_len: int, chosen: list[Pass], of: Callable[[Block, int | float], int | float]
) -> float:
    """Returns the FLOPs that attention skips in some recursions and the ends.

    Where queries and keys are told apart by their places alone, attention on the reference path
    does not multiply tiles that causality or a window masks wholly. Kernels skip about as much.

    Args:
      config: the model.
      seq_len: tokens of the sequence.
      chosen: the recursions.
      of: FLOPs of one token by its number of keys, such as `Block.attention_flops`.
    """
    core = sum(
        step.times * step.queries * of(step.block, step.skipped)
        for step in steps_of(config, seq_len, chosen)
    )
    skipped = skipped_keys(seq_len, seq_len)
    return core + end_flops(config, seq_len, lambda block, *_: of(block, skipped))


def core_token_flops(
    config: Model, block: Block, keys: int | float, is_reading: bool
) -> int | float:
    """Returns the forward FLOPs of one token in a step of the core; see `Block.forward_flops`.

    Args:
      config: the model.
      block: its block, or one like it.
      keys: number of keys per query, masked ones included.
      is_reading: whether the step reads what another made: keys and values, or queries and keys.
    """
    if is_reading and config.schedule.replays:
        return block.forward_flops(keys, False) - block.score_flops()
    return block.forward_flops(keys, is_reading)


def core_flops(
    config: Model, seq_len: int, chosen: list[Pass], token_flops: TokenFlops | None = None
) -> int | float:
    """Returns the FLOPs of the blocks of some recursions of a sequence.

    Args:
      config: the model.
      seq_len: tokens of the sequence.
      chosen: the recursions.
      token_flops: of one token; None takes the forward pass, with what the weight kind adds.
    """

    def forward(block: Block, keys: int | float, is_reading: bool) -> int | float:
        names = block.score_weights if config.schedule.replays else block.key_weights
        added = config.weights.flops(config.block_specs, names if is_reading else ())
        return core_token_flops(config, block, keys, is_reading) + added

    token_flops = token_flops or forward
    return sum(
        step.times * step.queries * token_flops(step.block, step.keys, step.is_reading)
        for step in steps_of(config, seq_len, chosen)
    )


def end_flops(config: Model, seq_len: int, token_flops: TokenFlops | None = None) -> int | float:
    """Returns the FLOPs of a sequence in prelude and coda; of the forward pass by default."""
    forward = lambda block, keys, is_reading: block.forward_flops(keys, is_reading)
    each = (token_flops or forward)(config.end_block, seq_len + config.parallel.num_keys, False)
    return sum(config.ends.values()) * seq_len * config.parallel.num_copies * each


def unneeded_flops(config: Model, block: Block, is_in_core: bool) -> int:
    """Returns the forward FLOPs of one token that a rematerialised block does not compute again.

    Args:
      config: the model.
      block: the block, or the part of it that a step applies.
      is_in_core: whether the block's weights come from its banks, by the weight kind.
    """
    specs = block.specs(config.num_layers)
    kind = config.weights.of(specs)
    if is_in_core:
        made_of = {**specs, **kind.specs(specs)}
        cells = {slot: config.schedule.entry(slot).shape[1:] for slot in made_of}
        several = lambda slot: (cells[slot], (None,) * len(cells[slot]))
        specs = {slot: params.stack(tree, *several(slot)) for slot, tree in made_of.items()}

    def apply(weights: Params, x: jax.Array) -> jax.Array:
        place = jnp.zeros((1, 1), jnp.int32)
        weights = kind.bind(weights) if is_in_core else weights
        return block.apply(weights, x, Context(place, place))[0].sum()

    token = jax.ShapeDtypeStruct((1, 1, block.stream_dim), jnp.float32)
    trace = lambda f: jax.make_jaxpr(f)(params.abstract(specs), token)
    backward = lambda f: count_flops(trace(jax.grad(f, (0, 1))))
    return count_flops(trace(apply)) - (backward(jax.checkpoint(apply)) - backward(apply))
