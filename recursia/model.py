"""Tokens to logits: embed, prelude, recursions, coda, head.

Block, grid, weight kind and depth policy meet only here.
"""

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia import inject as injection
from recursia import kv as kv_source
from recursia import params as parameters
from recursia.blocks.block import Block
from recursia.depth.policy import Aux, Call, Mode
from recursia.layers import embedding
from recursia.layers.attention import PADDING, Context
from recursia.layers.linear import dot
from recursia.layers.norm import normalise as norm
from recursia.params import Leaf
from recursia.sharding import constrain
from recursia.sharing import grid as sharing
from recursia.sharing import tied
from recursia.sharing.core import Core, Remat, Saves, cast, rematerialise, run_stack

LoopNorm = Literal["none", "each", "last"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A point on the axes.

    Attributes:
      vocab_size: rows of the embedding.
      block: what one step does.
      depth: the `Config` of a module in `recursia.depth`.
      grid: which steps share which weights.
      kv: whose keys and values a step reads.
      embed: embedding and head.
      weights: the `Config` of a weight kind in `recursia.sharing`.
      inject: what a recursion is told when it starts.
      loop_norm: where the final norm stands besides before the head: nowhere, after "each"
        recursion, or after the "last". After "each" and with no coda, it is not repeated.
      dtype: compute dtype; parameters are float32.
      remat: what the backward pass computes again.
      remat_saves: what it keeps of that all the same.
    """

    vocab_size: int
    block: Block
    depth: Any
    grid: sharing.Grid
    kv: kv_source.Config
    embed: embedding.Config
    weights: Any = dataclasses.field(default_factory=tied.Config)
    inject: injection.Config = dataclasses.field(default_factory=injection.Config)
    loop_norm: LoopNorm = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    remat_saves: Saves = "nothing"


@struct.dataclass
class Output:
    """What a forward pass gives.

    Attributes:
      hidden: states of the last layer, normalised: `logits` multiplies them by the head.
      aux: what the depth policy reports, with the losses and metrics of the blocks.
    """

    hidden: Leaf  # [B T D]
    aux: Aux


def module(config: Any) -> ModuleType:
    """Returns the depth policy or weight kind whose config this is."""
    return importlib.import_module(type(config).__module__)


def check(config: Config) -> None:
    """Refuses parts that cannot be combined.

    Raises:
      ValueError: with the reason.
    """
    module(config.depth).check(config.depth, config.grid, config.kv, config.inject)
    if config.loop_norm != "none" and config.block.final_norm() is None:
        raise ValueError(
            f"loop_norm: got {config.loop_norm!r}, and the block normalises its own result: it has "
            "no final norm; take 'none'"
        )
    if config.grid.order == "sequence" and config.loop_norm == "each":
        raise ValueError(
            "loop_norm: 'each' stands after a whole recursion, and sharing 'sequence' walks block "
            "by block; take a cycle, or 'last'"
        )
    if config.grid.order == "sequence" and config.inject != injection.Config():
        raise ValueError(
            "inject: tells a recursion something when it starts, and sharing 'sequence' walks "
            "block by block; take a cycle"
        )


def block_specs(config: Config) -> dict[str, Any]:
    """Returns the specs of one block by slot, with initial scales for the model's depth."""
    return config.block.specs(config.grid.num_steps)


def specs(config: Config) -> dict[str, Any]:
    """Returns the parameters of a model, as specs.

    Raises:
      ValueError: if its parts cannot be combined.
    """
    check(config)
    return unchecked_specs(config)


def unchecked_specs(config: Config) -> dict[str, Any]:
    """Returns the same, also of parts that would not train together."""
    d, grid = config.block.embed_dim, config.grid
    block = block_specs(config)
    found = {
        "embed": embedding.specs(config.embed, config.vocab_size, d),
        **sharing.specs(grid, block, module(config.weights).specs(config.weights, block)),
        "depth": module(config.depth).specs(config.depth, grid, d),
        "inject": injection.specs(config.inject, grid.num_recursions, d),
    }
    final = config.block.final_norm()
    return found if final is None else {**found, "final_norm": final}


def apply(
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    config: Config,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    mode: Mode,
    step: Int[Array, ""] | None = None,
    key: Array | None = None,
    part: int | Int[Array, ""] = 0,
    state: Float[Array, "B T D"] | None = None,
    wanted: Bool[Array, "B T"] | None = None,
) -> Output:
    """Returns the final hidden states of every token.

    Args:
      params: float32 parameters of `specs(config)`.
      tokens: ids in [0, vocab_size).
      config: the model.
      positions: of the tokens in their documents; None counts along the row.
      segment_ids: tokens see only their own segment, a number from 1; None makes the row one. 0 is
        padding, which is no token: it takes no place in a capacity or an expert and no part in a
        loss or metric, and what is returned for it means nothing.
      mode: "train", "eval" (as published) or "causal" (as decoding will decide).
      step: the training step, for policies whose training changes with it.
      key: of the step's random draws; None draws the same numbers every time.
      part: which microbatch of the step this is.
      state: what a policy that starts from noise starts from; None draws it.
      wanted: in causal mode, the tokens whose states will be read: those of others may be wrong.
        None wants all.
    """
    context = _context(tokens.shape, positions, segment_ids)
    x = embedding.lookup(params["embed"], tokens, config.embed, config.dtype)
    x = constrain(x, ("batch", "length", None))
    x, before = _ends(params["prelude"], x, context, config)
    if injection.needs_input(config.inject):
        context = context.replace(inputs=x)
    run = functools.partial(module(config.depth).run, _core(params, config), params["depth"])
    x, aux = run(x, context, config.depth, Call(mode, step, key, part, state, wanted))
    x, after = _finish(params, x, context, config)
    return Output(x, _with_reports(aux, before, after, config))


def _context(shape: tuple[int, int], positions: Array | None, segment_ids: Array | None) -> Context:
    along = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    return Context(
        along if positions is None else positions,
        segment_ids,
        is_live=None if segment_ids is None else segment_ids != PADDING,
        is_row=positions is None,
    )


def read(
    params: dict[str, Any],
    state: Float[Array, "B T D"],
    config: Config,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T E"]:
    """Returns what the head takes of a recursion's states, were they the last (logit lens).

    The state goes through loop norm, coda and final norm, as the last recursion's does. The other
    arguments are those of `apply`.
    """
    context = _context(state.shape[:2], positions, segment_ids)
    return _finish(params, state, context, config)[0]


def _finish(
    params: dict[str, Any], x: Array, context: Context, config: Config
) -> tuple[Array, dict[str, Any]]:
    """Returns what the head takes of a last state, and what the coda reports."""
    if config.loop_norm == "last":
        x = _norm(params, x, config)
    x, report = _ends(params["coda"], x, context.replace(inputs=None), config)
    if config.loop_norm != "each" or config.grid.coda:
        x = _norm(params, x, config)
    return embedding.before_head(params["embed"], x), report


def _core(params: dict[str, Any], config: Config) -> Core:
    read = lambda x, context: logits(params, _finish(params, x, context, config)[0], config)
    return Core(
        config.grid,
        config.block,
        params["core"],
        {slot: jnp.array(table) for slot, table in config.grid.tables if slot in params["core"]},
        functools.partial(module(config.weights).wrap, config.weights),
        (config.inject, params["inject"]),
        functools.partial(_norm, params, config=config) if config.loop_norm == "each" else None,
        read,
        config.kv,
        config.dtype,
        config.remat,
        config.remat_saves,
    )


def _ends(
    bank: dict[str, Any], x: Array, context: Context, config: Config
) -> tuple[Array, dict[str, Any]]:
    """Applies the blocks of a prelude or coda, each with its own weights."""
    if not bank:
        return x, {}
    block = config.block

    def step(weights: dict[str, Any], x: Array, _: None) -> tuple[Array, dict[str, Any]]:
        # A single block is no loop once compiled: its weights' gradients are not to wait, with all
        # that they are made of, until the core's backward pass is over.
        weights, x = jax.lax.optimization_barrier((cast(block, weights, config.dtype), x))
        x, _, report = block.apply(weights, x, context)
        return x, report

    if config.remat != "none":
        step = rematerialise(step, config.remat_saves, len(jax.tree.leaves(bank)[0]))
    return run_stack(step, x, bank)


def _with_reports(aux: Aux, before: dict[str, Any], after: dict[str, Any], config: Config) -> Aux:
    """Adds what the blocks make of their reports, summed over the uses of each bank entry.

    A loop that stops when it may keeps no reports: nothing is added.
    """
    if not aux.report:
        return aux

    def by_entry(slot: str, leaf: Array) -> Array:
        table = np.array(config.grid.table_of(slot))
        flat = leaf.reshape(table.size, *leaf.shape[2:])
        return jax.ops.segment_sum(flat, table.reshape(-1), int(table.max()) + 1)

    def joined(slot: str, tree: Any) -> Any:
        summed = jax.tree.map(functools.partial(by_entry, slot), tree)
        ends = [end[slot] for end in (before, after) if end]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), summed, *ends)

    reports = {slot: joined(slot, tree) for slot, tree in aux.report.items()}
    losses, metrics = config.block.losses(reports)
    return aux.replace(losses={**aux.losses, **losses}, metrics={**aux.metrics, **metrics})


def _norm(params: dict[str, Any], x: Array, config: Config) -> Array:
    if "final_norm" not in params:
        return x
    weights = jax.tree.map(lambda p: p.astype(x.dtype), params["final_norm"])
    return norm(x, weights, config.block.norm_eps)


def normalise(params: dict[str, Any], x: Array, config: Config) -> Array:
    """Returns a recursion's state through the final norm alone, without loop norm or coda."""
    x = x if config.loop_norm == "each" else _norm(params, x, config)
    return embedding.before_head(params["embed"], x)


def logits(
    params: dict[str, Any], hidden: Float[Array, "*B D"], config: Config
) -> Float[Array, "*B V"]:
    """Returns float32 next-token logits of normalised hidden states."""
    head = embedding.head(params["embed"])
    scores = dot(hidden, head["matrix"].astype(hidden.dtype), "d,vd->v").astype(jnp.float32)
    return scores + head["bias"] if "bias" in head else scores


def at_depth(
    config: Config, params: dict[str, Any], num_recursions: int
) -> tuple[Config, dict[str, Any]]:
    """Returns the model that walks its core `num_recursions` times, with the same weights.

    Raises:
      ValueError: for a depth that some slot or the depth policy has no weights for.
    """
    grid = config.grid.at_depth(num_recursions)
    config.inject.check_depth(config.grid.num_recursions, num_recursions)
    depth = module(config.depth).at_depth(config.depth, num_recursions)
    config = dataclasses.replace(config, grid=grid, depth=depth)
    kept = {name: specs(config)[name] for name in ("core", "depth", "inject")}
    cut = lambda spec, p: p[: spec.shape[0]] if spec.shape else p
    first = jax.tree.map(cut, kept, {name: params[name] for name in kept})
    return config, {**params, **first}


def at_step(config: Config, step: int) -> Config:
    """Returns the model of one training step; few distinct values, each compiled once."""
    return dataclasses.replace(config, depth=module(config.depth).at_step(config.depth, step))


def is_causal(config: Config, mode: Mode) -> bool:
    """Returns whether logits up to a token are free of later tokens in this mode."""
    return module(config.depth).is_causal(config.depth, mode)


def modes(config: Config) -> tuple[Mode, ...]:
    """Returns the modes in which a model is scored: as published, and causally if that differs."""
    return ("eval",) if is_causal(config, "eval") else ("eval", "causal")


def init(config: Config, key: Array) -> dict[str, Any]:
    """Returns float32 parameters."""
    return parameters.init(specs(config), key)
