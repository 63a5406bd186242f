"""What a model costs: parameters, FLOPs and bytes, in closed form from its config.

FLOPs are those of matrix multiplications, two for each multiply-add; norms, softmax, rotations and
gates are not counted. They are what the program executes in mode "train", not an estimate of it:
attention counts every query with every key of its pass, the masked half included, as the reference
path computes it. `count_flops` counts a traced program, and the tests hold the closed forms to it.

Left out: a warm-up of capacities, whose steps process every token; the loss's padding where its
chunk does not divide the sequence; a teacher. Counted though not executed: products of the backward
pass towards what a router reads without a gradient, or without a loss of its own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from recursia import model, params
from recursia.architecture import Model
from recursia.depth.policy import Pass
from recursia.layers.attention import Context
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.optimizer import Optimizer
from recursia.sharing import key_banks, patterns
from recursia.sharing.remat import Remat
from recursia.sharing.schedule import KEYS

_STACKS = ("prelude", "core", "coda", "depth")
_BACKWARD = 2  # products in the backward pass for each one forward: towards input and weight
_FLOAT32 = 4  # bytes
_ADAMW = AdamW()
_ENDLESS = 1 << 40  # tokens; a sequence so long that counts of tokens are exact fractions of it
_UNCOUNTED = ("conv_general_dilated", "ragged_dot_general", "pallas_call")


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
      executed_training_flops_per_token: the same with what is computed again to save memory.
      sixn_flops_per_token: see `sixn_flops_per_token`.
      mor_flops_per_token: see `mor_flops_per_token`.
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


def budget(config: Model, seq_len: int, remat: Remat, optimizer: Optimizer = _ADAMW) -> Budget:
    """Returns everything on this page for sequences of `seq_len` tokens."""
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
    )


def unique_parameters(config: Model) -> int:
    """Returns the number of parameters that are trained and stored."""
    return params.count(model.specs(config))


def applied_parameters(config: Model) -> int:
    """Returns the parameters that a token meets which takes every recursion.

    Those of the same model with nothing shared among its steps: a block counts once for each time
    it is applied, what makes keys and values where it makes some, and a router once for each
    recursion, the tables as they are (a tied one once).
    """
    plan, block = config.schedule, config.block_specs
    routers = patterns.table(plan.num_recursions, plan.num_blocks, "router", "recursion")
    private = dataclasses.replace(plan, entries=tuple((s, routers) for s in config.depth.slots))
    banks: dict[str, Any] = {}
    for slot, tree in (block | config.weights.applied(block)).items():
        banks |= key_banks.split(slot, tree, config.key_weights)
    users = lambda bank: len(set(plan.owners)) if bank.endswith(KEYS) else plan.num_steps
    core = sum(users(bank) * params.count(tree) for bank, tree in banks.items())
    ends = sum(config.ends.values()) * params.count(block)
    others = {name: tree for name, tree in model.specs(config).items() if name not in _STACKS}
    depth = config.depth.specs(private, config.block.embed_dim)
    return core + ends + params.count({**others, "depth": depth})


def mean_depth(config: Model, seq_len: int) -> float:
    """Returns how many recursions process a token of a training sequence, on average."""
    return sum(each.times * each.queries for each in _passes(config, seq_len)) / seq_len


def forward_flops(config: Model, seq_len: int) -> int:
    """Returns the FLOPs of a training sequence's forward pass, from embedding to logits."""
    passes = _passes(config, seq_len)
    return _passes_flops(config, seq_len, passes) + _outer_flops(config, seq_len)


def training_flops(config: Model, seq_len: int) -> int:
    """Returns the FLOPs of a training sequence, forward and backward, nothing counted twice.

    What is computed again to save memory is in `executed_training_flops`. Exactly three times the
    forward pass, but for recursions without a backward one: whatever is multiplied depends on a
    parameter on both sides, the first layer's input through the embedding and the first router's
    too. States read through the head besides the last are counted.
    """
    passes = _passes(config, seq_len)
    trained = [each for each in passes if each.is_trained]
    exits = config.depth.num_exits - 1
    outer = _outer_flops(config, seq_len) + exits * _head_flops(config, seq_len)
    forward = _passes_flops(config, seq_len, passes) + outer
    return forward + _BACKWARD * (_passes_flops(config, seq_len, trained) + outer)


def _passes_flops(config: Model, seq_len: int, passes: list[Pass]) -> int:
    """FLOPs of a sequence's recursions, forward: routers, what is injected, blocks."""
    d = config.block.embed_dim
    score = config.depth.score_flops(d)
    injected = config.inject.flops(d)
    each = lambda p: p.scored * score + p.queries * injected
    return sum(p.times * each(p) for p in passes) + _core_flops(config, seq_len, passes)


def _outer_flops(config: Model, seq_len: int) -> int:
    """FLOPs of a sequence outside the recursions, forward."""
    lookup = 2 * seq_len * config.embed.factor_dim * config.block.embed_dim
    return lookup + _end_flops(config, seq_len) + _head_flops(config, seq_len)


def _head_flops(config: Model, seq_len: int) -> int:
    wide, factor = config.block.embed_dim, config.embed.factor_dim
    return 2 * seq_len * ((factor or wide) * config.vocab_size + factor * wide)


def executed_training_flops(config: Model, seq_len: int, remat: Remat) -> int:
    """Returns `training_flops` with what the backward pass computes again under `remat`.

    Every block computes some again in any case, attention its scores. A rematerialised block
    computes all again but its last product, which no gradient needs; a rematerialised recursion
    needs that too, for its next block. Prelude and coda are done block by block either way. Of
    "attention" saved, its forward pass is left out; of "products", all but that. What XLA then
    finds computed twice and merges is not known here.
    """
    scores = lambda block, keys, _: block.recomputed_flops(keys)
    passes = [each for each in _passes(config, seq_len) if each.is_trained]
    again = _core_flops(config, seq_len, passes, scores) + _end_flops(config, seq_len, scores)
    attention = 2 * again  # forward: as many FLOPs with values as with keys
    remat = remat.in_order(config.schedule.order)
    if remat.unit != "none" and remat.saves == "products":
        return training_flops(config, seq_len) + again + attention
    if remat.unit != "none":
        again -= attention if remat.saves == "attention" else 0
        ends = sum(config.ends.values()) * seq_len
        again += _core_flops(config, seq_len, passes) + _end_flops(config, seq_len)
        again -= ends * _unneeded_flops(config, is_wrapped=False)
        if remat.unit == "block":
            steps = config.schedule.num_blocks * sum(each.times * each.queries for each in passes)
            again -= steps * _unneeded_flops(config, is_wrapped=True)
    return training_flops(config, seq_len) + again


def sixn_flops_per_token(config: Model) -> int:
    """Returns the customary 6 N (Kaplan et al. 2020, arXiv 2001.08361) for training one token.

    N is the unique parameters, without an embedding table that is only looked up: the head stays,
    tied or not. It sees neither attention nor that weights are used again, so a model with R
    recursions costs up to R times as much.
    """
    table = 0 if config.embed.is_tied else config.vocab_size * config.block.embed_dim
    return 6 * (unique_parameters(config) - table)


def mor_flops_per_token(config: Model, seq_len: int) -> float:
    """Returns one token's FLOPs as Mixture-of-Recursions counts them (arXiv 2507.10524).

    The steps of its released runs follow from it: forward only; no embedding, head or router;
    attention's causal half; keys and values projected as wide as queries, whatever the number of
    key heads; capacities as fractions, not as whole tokens of `seq_len`, and tokens that choose
    their own depth as if they chose evenly. A recursion that reads keys and values processes its
    fraction against all keys and projects none. A third of what training costs, and less.
    """
    block, mixer = config.block, config.block.mixer
    if hasattr(mixer, "num_kv_heads"):
        wide = dataclasses.replace(mixer, num_kv_heads=mixer.num_heads)
        block = dataclasses.replace(block, mixer=wide)
    causal = lambda keys, is_reading: block.forward_flops(keys * seq_len / 2, is_reading)
    steps = _steps(config, _ENDLESS, list(map(_needed, _passes(config, _ENDLESS))))
    core = sum(
        step.times * step.queries / _ENDLESS * causal(step.keys / _ENDLESS, step.is_reading)
        for step in steps
    )
    return core + sum(config.ends.values()) * causal(1, False)


def _needed(each: Pass) -> Pass:
    """Returns a pass of those tokens alone whose result is kept, as far as that is known."""
    return each if each.needed is None else dataclasses.replace(each, queries=each.needed)


def cache_bytes_per_token(config: Model, seq_len: int, itemsize: int | None = None) -> float:
    """Returns the bytes of keys and values kept while decoding, per token of context.

    A recursion keeps those of the tokens it makes them for: as many as it processes in training, or
    all in the first and none after it where recursions read the first one's. Keys that are read
    through a window alone are kept while they are in it. Prelude and coda keep all.

    Args:
      config: the model.
      seq_len: tokens of context.
      itemsize: bytes of a number; None takes the compute dtype's.
    """
    itemsize = itemsize or jnp.dtype(config.dtype).itemsize
    steps = _steps(config, seq_len, _passes(config, seq_len))
    made = sum(step.times * step.kept for step in steps)
    kept = sum(config.ends.values()) * seq_len + made
    return itemsize * config.block.cache_entries() * kept / seq_len


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one block of a recursion processes of a sequence, in tokens.

    Attributes:
      queries: tokens that the block processes.
      keys: tokens whose keys and values each of them meets, masked ones included.
      kept: tokens whose keys and values it makes and decoding keeps.
      is_reading: whether another step made the keys that it meets.
      times: how many recursions are like this.
      is_trained: whether a backward pass follows.
    """

    queries: int
    keys: int
    kept: int
    is_reading: bool
    times: float
    is_trained: bool


def _passes(config: Model, seq_len: int) -> list[Pass]:
    return config.depth.passes(config.schedule, seq_len)


def _steps(config: Model, seq_len: int, passes: list[Pass]) -> list[_Step]:
    """Returns the steps of some recursions: keys are those of all tokens that their owner takes."""
    plan = config.schedule
    tokens = {each.recursion: each.queries for each in _passes(config, seq_len)}
    tokens |= {each.recursion: each.queries for each in passes}
    found = []
    for each in passes:
        first = each.recursion * plan.num_blocks
        for step in range(first, first + plan.num_blocks):
            owner = int(plan.owners[step])
            keys = each.queries if owner == step else tokens[owner // plan.num_blocks]
            windows = plan.seen[plan.owners == step]
            bound = min(keys, windows.max()) if len(windows) and windows.all() else keys
            kept = int(bound) if owner == step else 0
            found.append(
                _Step(each.queries, keys, kept, owner != step, each.times, each.is_trained)
            )
    return found


def _core_flops(
    config: Model, seq_len: int, passes: list[Pass], flops: Callable | None = None
) -> int:
    """FLOPs of the blocks of some recursions, by default forward with what weight kinds add."""

    def forward(block: Any, keys: float, is_reading: bool) -> float:
        skipped = block.key_weights if is_reading else ()
        added = config.weights.flops(config.block_specs, skipped)
        return block.forward_flops(keys, is_reading) + added

    flops = flops or forward
    return sum(
        step.times * step.queries * flops(config.block, step.keys, step.is_reading)
        for step in _steps(config, seq_len, passes)
    )


def _end_flops(config: Model, seq_len: int, flops: Callable | None = None) -> int:
    """FLOPs of a sequence in prelude and coda, by default forward."""
    forward = lambda block, keys, is_reading: block.forward_flops(keys, is_reading)
    each = seq_len * (flops or forward)(config.block, seq_len, False)
    return sum(config.ends.values()) * each


def _unneeded_flops(config: Model, is_wrapped: bool) -> int:
    """Forward FLOPs of one token in a block that its backward pass does not compute again."""
    specs = config.block_specs
    if is_wrapped:
        specs = {**specs, **config.weights.specs(specs)}

    def run(weights: Any, x: jax.Array) -> jax.Array:
        place = jnp.zeros((1, 1), jnp.int32)
        weights = config.weights.bind(weights) if is_wrapped else weights
        return config.block.apply(weights, x, Context(place, place))[0].sum()

    token = jax.ShapeDtypeStruct((1, 1, config.block.embed_dim), jnp.float32)
    trace = lambda f: jax.make_jaxpr(f)(params.abstract(specs), token)
    backward = lambda f: count_flops(trace(jax.grad(f, (0, 1))))
    return count_flops(trace(run)) - (backward(jax.checkpoint(run)) - backward(run))


def count_flops(jaxpr: jax_core.ClosedJaxpr | jax_core.Jaxpr) -> int:
    """Returns the FLOPs of every matrix multiplication that a traced program executes.

    A scan counts once for each of its steps, and of the branches of a condition the dearest.

    Raises:
      ValueError: for a multiplication whose number is not known: in a loop without a fixed length,
        or by an operation that this does not count.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, jax_core.ClosedJaxpr) else jaxpr
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if op := getattr(equation.primitive, "op", None):
        arrays = (variable.aval for variable in equation.invars)
        arrays = jax.tree.unflatten(equation.params["tree"], arrays)
        return op.flops(*arrays, **dict(equation.params["static"])) if op.flops else 0
    if name in _UNCOUNTED:
        raise ValueError(f"count_flops: {name} is not counted; trace the reference path instead")
    inner = [count_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError(
            f"count_flops: a while loop multiplies {sum(inner)} FLOPs in each step, for a number "
            "of steps that is not known; trace it as a scan"
        )
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # written for one device of those that it names
        sizes = equation.params["mesh"].shape
        return sum(inner) * math.prod(sizes[a] for a in equation.params["newly_manual_axes"])
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner_jaxprs(equation: Any) -> list[Any]:
    values = equation.params.values()
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return [v for v in flat if isinstance(v, jax_core.ClosedJaxpr | jax_core.Jaxpr)]
