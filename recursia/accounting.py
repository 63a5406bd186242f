"""What a model costs: parameters, FLOPs and bytes, in closed form from its config.

FLOPs are those of matrix multiplications, two for each multiply-add; norms, softmax, rotations and
gates are not counted. As is customary, attention counts every query with every key of its
recursion, the masked half included. `executed_training_flops` is what the program executes in mode
"train", not an estimate of it: it counts what is computed again, and not the tiles of attention
that the reference path skips, as they are wholly masked. The tests compare it with
`recursia.traced_flops.count_flops` of the traced program.

Not counted: the warm-up of capacities, in which steps process every token; the loss's padding
where its chunk does not divide the sequence. A teacher is counted by itself. Counted but not
executed: the backward products towards the input of a router that passes no gradient to it, or has
no loss of its own.
"""

import collections
import dataclasses

import jax.numpy as jnp

from recursia import model, params
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.depth.policy import Pass
from recursia.mixers.grouped_query import GroupedQuery
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.optimizer import Optimizer
from recursia.sharing import key_banks, patterns
from recursia.sharing.remat import Remat
from recursia.sharing.schedule import KEYS
from recursia.step_costs import (
    core_flops,
    core_token_flops,
    end_flops,
    passes_of,
    skipped_flops,
    skipped_keys,
    steps_of,
    unneeded_flops,
)

_STACKS = ("prelude", "core", "coda", "depth")
_BACKWARD = 2  # products in the backward pass for each one forward: towards input and weight
_FLOAT32 = 4  # bytes
_ADAMW = AdamW()
_ENDLESS = 1 << 40  # tokens; a sequence so long that counts of tokens are exact fractions of it


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one model costs at one sequence length.

    Attributes:
      unique_parameters: entries of all banks and tables.
      applied_parameters: see `applied_parameters`.
      parameter_bytes: of the float32 parameters.
      optimizer_bytes: of the optimizer's float32 state; see `Optimizer.moments`.
      cache_bytes_per_token: see `cache_bytes_per_token`, at the compute dtype.
      mean_depth: see `mean_depth`.
      forward_flops_per_token: see `forward_flops`; a mean over the sequence, as are all FLOPs here.
      training_flops_per_token: forward and backward.
      executed_training_flops_per_token: the same with what is computed again to save memory, and
        without the tiles that attention skips.
      sixn_flops_per_token: see `sixn_flops_per_token`.
      mor_flops_per_token: see `mor_flops_per_token`.
      making_flops: see `making_flops`.
    """

    unique_parameters: int
    applied_parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    cache_bytes_per_token: float
    mean_depth: float
    forward_flops_per_token: float
    training_flops_per_token: float
    executed_training_flops_per_token: float
    sixn_flops_per_token: int
    mor_flops_per_token: float
    making_flops: int


def budget(config: Model, seq_len: int, remat: Remat, optimizer: Optimizer = _ADAMW) -> Budget:
    """Returns the costs of a model for sequences of `seq_len` tokens."""
    unique = unique_parameters(config)
    return Budget(
        unique_parameters=unique,
        applied_parameters=applied_parameters(config),
        parameter_bytes=_FLOAT32 * unique,
        optimizer_bytes=optimizer.state_bytes(model.specs(config)),
        cache_bytes_per_token=cache_bytes_per_token(config, seq_len),
        mean_depth=mean_depth(config, seq_len),
        forward_flops_per_token=forward_flops(config, seq_len) / seq_len,
        training_flops_per_token=training_flops(config, seq_len) / seq_len,
        executed_training_flops_per_token=executed_training_flops(config, seq_len, remat) / seq_len,
        sixn_flops_per_token=sixn_flops_per_token(config),
        mor_flops_per_token=mor_flops_per_token(config, seq_len),
        making_flops=making_flops(config),
    )


def unique_parameters(config: Model) -> int:
    """Returns the number of parameters that are trained and stored."""
    return params.count(model.specs(config))


def applied_parameters(config: Model) -> int:
    """Returns the parameters applied to a token that takes every recursion.

    These are the parameters of the same model without sharing: a block counts once for each time it
    is applied, weights of keys and values once for each step that makes some, a router once for
    each recursion, and each embedding table once (a tied one once in all).
    """
    plan = config.schedule
    routers = patterns.table(plan.num_recursions, plan.num_blocks, "router", "recursion")
    private = dataclasses.replace(plan, entries=tuple((s, routers) for s in config.depth.slots))
    core, makers = 0, set(plan.owners.tolist())
    for own in set(config.step_blocks):
        steps = [step for step, each in enumerate(config.step_blocks) if each == own]
        specs = config.step_specs[steps[0]]
        for slot, tree in (specs | config.weights.applied(specs)).items():
            for bank, part in key_banks.split(slot, tree, config.key_weights).items():
                users = makers.intersection(steps) if bank.endswith(KEYS) else steps
                core += len(users) * params.count(part)
    ends = sum(config.ends.values()) * params.count(config.end_specs)
    others = {name: tree for name, tree in model.specs(config).items() if name not in _STACKS}
    depth = config.depth.specs(private, config.block.stream_dim)
    return core + ends + params.count({**others, "depth": depth})


def mean_depth(config: Model, seq_len: int) -> float:
    """Returns how many recursions process a token of a training sequence, on average."""
    passes = config.depth.passes(config.schedule, seq_len)
    return sum(each.times * each.queries for each in passes) / seq_len


def forward_flops(config: Model, seq_len: int) -> int | float:
    """Returns the FLOPs of a training sequence's forward pass, from embedding to logits."""
    passes = passes_of(config, seq_len)
    return _passes_flops(config, seq_len, passes) + _outer_flops(config, seq_len)


def training_flops(config: Model, seq_len: int) -> int | float:
    """Returns the FLOPs of a training sequence, forward and backward, nothing counted twice.

    They are three times those of the forward pass, except in recursions without a backward pass:
    both factors of every product depend on parameters, the first layer's input through the
    embedding, unless that is made of waves, which do not. States that the loss reads through the
    head besides the last are counted.
    `executed_training_flops` adds what rematerialisation computes again.
    """
    passes = passes_of(config, seq_len)
    trained = [each for each in passes if each.is_trained]
    exits = config.depth.num_exits - 1
    outer = _outer_flops(config, seq_len) + exits * _head_flops(config, seq_len)
    forward = _passes_flops(config, seq_len, passes) + outer
    backward = _BACKWARD * (_passes_flops(config, seq_len, trained) + outer)
    return forward + backward - seq_len * config.embed.constant_flops(config.end_block.embed_dim)


def _passes_flops(config: Model, seq_len: int, passes: list[Pass]) -> int | float:
    """Returns the forward FLOPs of a sequence's recursions: routers, injection, blocks."""
    d = config.block.embed_dim
    score = config.depth.score_flops(config.block.stream_dim)
    injected = config.inject.flops(d)
    enters = lambda p: p.blocks is None or 0 in p.blocks
    each = lambda p: p.scored * score + p.queries * injected * enters(p)
    around = config.parallel.num_copies * sum(p.times * each(p) for p in passes)
    return around + core_flops(config, seq_len, passes)


def _outer_flops(config: Model, seq_len: int) -> int | float:
    """Returns the forward FLOPs of a sequence outside the recursions."""
    lookup = config.embed.flops(config.end_block.embed_dim, seq_len) + _resize_flops(config)
    return seq_len * lookup + end_flops(config, seq_len) + _head_flops(config, seq_len)


def _head_flops(config: Model, seq_len: int) -> int:
    width = config.end_block.embed_dim
    average = config.parallel.flops(width)
    head = config.embed.head_flops(config.vocab_size, width) + average
    return seq_len * (head + _resize_flops(config))


def _logits_flops(config: Model, seq_len: int) -> int:
    width = config.embed.row_width(config.end_block.embed_dim)
    return 2 * seq_len * width * config.vocab_size


def _resize_flops(config: Model) -> int:
    """Returns those of one token's projection to the width of the core, or back."""
    each = 2 * config.end_block.embed_dim * config.block.embed_dim if config.is_resized else 0
    return config.parallel.num_copies * each


def teacher_flops(
    config: Model, teacher: Model, seq_len: int, learns_predictions: bool
) -> int | float:
    """Returns the FLOPs that a teacher adds to the training of a sequence.

    They are those of its forward pass, and of the model's logits once more, forward and backward.

    Args:
      config: the model.
      teacher: that it learns from.
      seq_len: tokens of the sequence.
      learns_predictions: whether logits of both are made, or states alone are learnt from.
    """
    forward = forward_flops(teacher, seq_len)
    if not learns_predictions:
        return forward - _logits_flops(teacher, seq_len)
    return forward + (1 + _BACKWARD) * _logits_flops(config, seq_len)


def executed_training_flops(config: Model, seq_len: int, remat: Remat) -> int | float:
    """Returns `training_flops` with what is computed again under `remat`, less what is skipped.

    The backward pass of attention computes its scores again whatever `remat` is. A rematerialised
    block computes everything again except its last product, which no gradient needs; a
    rematerialised recursion computes that too, as input of its next block. Prelude and coda are
    rematerialised block by block in either case. With `remat.saves` "attention", attention is not
    computed again; with "products", only attention is. Recomputation that XLA merges with the
    forward pass is counted. Attention skips the tiles that are wholly masked: see `skipped_flops`.
    """
    scores = lambda block, keys, _=False: block.recomputed_flops(keys)
    both = lambda block, keys, _=False: block.attention_flops(keys)
    every = passes_of(config, seq_len)
    passes = [each for each in every if each.is_trained]
    executed = lambda of: (
        core_flops(config, seq_len, passes, of)
        + end_flops(config, seq_len, of)
        - skipped_flops(config, seq_len, passes, of)
    )
    again, attention = executed(scores), executed(both)
    skipped = skipped_flops(config, seq_len, passes, both)
    once = training_flops(config, seq_len) - skipped_flops(config, seq_len, every, both)
    once -= _BACKWARD * skipped
    once += _embed_scores(config, seq_len)
    remat = remat.of_steps(config.schedule)
    if remat.unit != "none" and remat.saves == "products":
        return once + again + attention
    if remat.unit != "none":
        again -= attention if remat.saves == "attention" else 0
        ends = sum(config.ends.values()) * seq_len * config.parallel.num_copies
        again += core_flops(config, seq_len, passes) + end_flops(config, seq_len) - skipped
        again -= ends * unneeded_flops(config, config.end_block, is_in_core=False)
        if remat.unit == "block":
            tokens: dict[Block, int | float] = collections.defaultdict(int)
            for step in steps_of(config, seq_len, passes):
                tokens[step.block] += step.times * step.queries
            of = lambda block: unneeded_flops(config, block, is_in_core=True)
            again -= sum(count * of(block) for block, count in tokens.items())
    return once + again


def _embed_scores(config: Model, seq_len: int) -> int | float:
    """Returns what an embedding that attends computes again, its scores, less what it skips."""
    if (mixer := config.embed.attention) is None:
        return 0
    skipped = skipped_keys(seq_len, seq_len)
    width = config.embed.row_width(config.end_block.embed_dim)
    left_out = mixer.attention_flops(width, skipped) * (1 + _BACKWARD)
    return seq_len * (mixer.recomputed_flops(seq_len - skipped) - left_out)


def making_flops(config: Model) -> int:
    """Returns the FLOPs that make weights of their parts in one microbatch, whatever its tokens.

    They are counted forward and backward, nothing twice, and are in no other number here.
    """
    each = config.weights.making_flops(config.block_specs)
    return (1 + _BACKWARD) * config.schedule.num_steps * each


def sixn_flops_per_token(config: Model) -> int:
    """Returns the customary 6 N (Kaplan et al. 2020, arXiv 2001.08361) for training one token.

    N is the number of unique parameters without those of tables that no token is multiplied by: of
    positions, and of an embedding that is not the head too. It counts neither attention nor the
    reuse of weights, so a model with R recursions costs up to R times as much.
    """
    embed = model.specs(config)["embed"]
    tables = ("positions",) if config.embed.is_tied else ("positions", "table")
    looked_up = params.count([embed[name] for name in tables if name in embed])
    return 6 * (unique_parameters(config) - looked_up)


def mor_flops_per_token(config: Model, seq_len: int) -> float:
    """Returns one token's FLOPs as Mixture-of-Recursions counts them (arXiv 2507.10524).

    The numbers of training steps of its released runs follow from this count: forward only; no
    embedding, head or router; attention's causal half; keys and values projected as wide as
    queries, whatever the number of key heads; capacities as fractions instead of whole tokens of
    `seq_len`; token choice as if tokens chose every depth equally often. A recursion that reads
    keys and values processes its fraction of queries against all keys and projects none. This is at
    most a third of what training costs.
    """

    def causal(block: Block, keys: int, is_reading: bool) -> int | float:
        if isinstance(mixer := block.mixer, GroupedQuery):
            wide = dataclasses.replace(mixer, num_kv_heads=mixer.num_heads)
            block = dataclasses.replace(block, mixer=wide)
        return core_token_flops(config, block, keys / _ENDLESS * seq_len / 2, is_reading)

    steps = steps_of(config, _ENDLESS, list(map(_needed, passes_of(config, _ENDLESS))))
    core = sum(
        each.times * each.queries / _ENDLESS * causal(each.block, each.keys, each.is_reading)
        for each in steps
    )
    ends = sum(config.ends.values()) * config.parallel.num_copies
    return core + ends * causal(config.end_block, _ENDLESS, False)


def _needed(each: Pass) -> Pass:
    """Returns a pass without queries whose result is known ahead to be discarded."""
    return each if each.needed is None else dataclasses.replace(each, queries=each.needed)


def cache_bytes_per_token(config: Model, seq_len: int, itemsize: int | None = None) -> float:
    """Returns the bytes of the KV cache in decoding, per token of context.

    A step that makes keys and values caches those of as many tokens as it processes in training; a
    step that reads those of another caches none, and one that replays queries and keys of another
    caches values. Where every reader has a sliding window, the cache holds the largest window.
    Prelude and coda cache every token. Parallel copies of the model each have a cache; prefixes are
    parameters, and in none. Numbers of recursions that training draws are left out:
    decoding takes the policy's own.

    Args:
      config: the model.
      seq_len: tokens of context.
      itemsize: bytes of a number; None takes the compute dtype's.
    """
    itemsize = itemsize or jnp.dtype(config.dtype).itemsize
    decoded = config.depth.at_depth(config.depth.num_recursions)
    steps = steps_of(config, seq_len, decoded.passes(config.schedule, seq_len))
    core = sum(step.times * step.cached for step in steps)
    outside = sum(config.ends.values()) * config.end_block.cache_entries()
    outside *= config.parallel.num_copies
    if (mixer := config.embed.attention) is not None:
        outside += mixer.cache_entries(config.embed.row_width(config.end_block.embed_dim))
    return itemsize * (seq_len * outside + core) / seq_len
