"""The forward pass, from tokens to logits: embedding, prelude, recursions, coda, head.

Blocks, sharing, weight kinds and depth policies meet only here.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia import layer_reports, stacks
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.depth.policy import Aux, Call, Mode
from recursia.embeddings.embedding import capped
from recursia.layers import affine
from recursia.layers.attention import PADDING, Context, Places
from recursia.layers.branch import Report
from recursia.layers.linear import dot
from recursia.layers.norm import normalise as norm
from recursia.layout import at_depth, init, specs
from recursia.params import Leaf, Params
from recursia.sharding import constrain
from recursia.sharing.cached import Store
from recursia.sharing.remat import KEEP, Remat
from recursia.sharing.stack import Stack
from recursia.stacks import CORE, EMBED

__all__ = [
    "Output", "apply", "at_depth", "embedded", "enter", "extend", "finish", "init", "logits",
    "multiplier", "normalise", "read", "specs", "stacks_of",
]  # fmt: skip


@struct.dataclass
class Output:
    """The final hidden states, and the losses and metrics of a forward pass.

    Attributes:
      hidden: normalised states of the last layer, which `logits` multiplies by the head; of
        parallel copies, their average.
      aux: losses and metrics of the depth policy and of the blocks.
      states: those after each layer, before any norm between or after layers; None where they were
        not asked for.
    """

    hidden: Leaf  # [B T D]
    aux: Aux
    states: Leaf | None = None  # [L B T D], D of each parallel copy


def apply(
    params: Params,
    tokens: Int[Array, "B T"],
    config: Model,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    mode: Mode,
    step: Int[Array, ""] | None = None,
    key: Array | None = None,
    microbatch: int | Int[Array, ""] = 0,
    state: Float[Array, "B T D"] | None = None,
    wanted: Bool[Array, "B T"] | None = None,
    is_by_token: bool = False,
    keeps_states: bool = False,
    remat: Remat = KEEP,
) -> Output:
    """Returns the final hidden states of every token.

    Args:
      params: float32 parameters of `specs(config)`.
      tokens: ids in [0, vocab_size).
      config: the model.
      positions: of the tokens in their documents; None counts along the row.
      segment_ids: the documents of a packed row, from 1: tokens attend to their own alone. None
        makes the row one document. 0 is padding: it takes no capacity of a recursion or an expert,
        enters no loss or metric, and its hidden states are undefined.
      mode: "train", "eval" (as published) or "causal" (as in decoding).
      step: the training step, for policies whose training changes with it.
      key: of the step's random draws; None draws the same numbers every time.
      microbatch: the number of the microbatch in its step.
      state: the initial state of a policy that starts from noise; None draws it.
      wanted: in causal mode, the tokens whose states will be read; the states of others may be
        wrong. None wants all.
      is_by_token: whether routers report each token by itself (`Usage`), not sums over tokens; the
        losses and metrics of blocks, which are of sums, are then left out. Of parallel copies, each
        of which routes a token by itself, they report nothing.
      keeps_states: whether to return the states after each layer, of a policy under which every
        token takes every step (`Policy.is_layered`).
      remat: what a backward pass computes again.

    Raises:
      ValueError: for rows of one document that the embedding has too few positions for.
    """
    context = _context(config, tokens.shape, positions, segment_ids)
    if is_by_token:
        along = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        context = dataclasses.replace(context, places=Places(along, tokens.shape[1]))
    context = dataclasses.replace(context, keeps_states=keeps_states)
    wanted = None if config.ends["coda"] else wanted  # a coda reads the states of other tokens too
    call = Call(mode, step, key, microbatch, state, wanted)
    return _forward(params, tokens, config, context, stacks_of(params, config, remat), call)


def extend(
    params: Params,
    tokens: Int[Array, "B T"],
    config: Model,
    cache: Cache,
    *,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    is_whole: bool = False,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Returns the final hidden states of the next tokens of some texts, and the KV cache with them.

    They are those that `apply` in mode "causal" returns for these tokens of the whole texts.

    Args:
      params: of `cache.unstack`.
      tokens: the next tokens of each row; padding may stand anywhere.
      config: the model.
      cache: of the tokens before.
      positions: of the tokens in their texts.
      segment_ids: 1 for a token, 0 for padding.
      is_whole: whether a token that stops early makes its keys of later recursions now, and not
        when a later token asks for them.

    Raises:
      ValueError: for a cache that a model of another depth filled.
    """
    cache.check(config)
    context = _context(config, tokens.shape, positions, segment_ids)
    pending = {CORE: cache.pending}
    stores = {name: Store(pasts, pending.get(name)) for name, pasts in cache.pasts.items()}

    def resume(stack: Stack, x: Array, context: Context) -> None:
        config.depth.run(stack, params["depth"], x, context, Call("causal"))

    may_resume = resume if config.owes_keys and not is_whole else None
    is_whole &= config.owes_keys
    cached = stacks.with_caches(stacks_of(params, config), stores, may_resume, is_whole)
    call = Call("causal", wanted=context.is_live)
    hidden = _forward(params, tokens, config, context, cached, call, stores.get(EMBED)).hidden
    count = cache.num_blocks + sum(store.num_blocks for store in stores.values())
    pasts = {name: store.pasts for name, store in stores.items()}
    return hidden, Cache(pasts, stores[CORE].pending, jnp.asarray(count))


def _forward(
    params: Params,
    tokens: Int[Array, "B T"],
    config: Model,
    context: Context,
    by_name: Mapping[str, Stack],
    call: Call,
    store: Store | None = None,
) -> Output:
    x, context, before = enter(params, tokens, config, context, by_name, store)
    if call.wanted is not None:
        call = dataclasses.replace(call, wanted=config.parallel.by_row(call.wanted))
    if config.inject.needs_input:
        context = dataclasses.replace(context, inputs=config.block.states(x))
    x, aux = config.depth.run(by_name[CORE].among(context), params["depth"], x, context, call)
    x, after = finish(params, x, context, config, by_name)
    states = None
    if context.keeps_states:
        states, (before, own, after) = layer_reports.by_layer(config, (before, aux.report, after))
        states, aux = config.parallel.joined(states), dataclasses.replace(aux, report=own)
    aux = config.parallel.by_text(aux)
    if context.places is None:
        aux = layer_reports.summed(aux, before, after, config)
    elif config.parallel.num_copies > 1:
        aux = dataclasses.replace(aux, report={})
    return Output(x, aux, states)


def enter(
    params: Params,
    tokens: Int[Array, "B T"],
    config: Model,
    context: Context,
    by_name: Mapping[str, Stack],
    store: Store | None = None,
) -> tuple[Array, Context, Report]:
    """Returns the states that enter the core, their context, and the report of the prelude.

    `store` has the KV cache of an embedding that attends.
    """
    past, report = store.pasts[0] if store else None, {}
    x, past = config.embed.embed(params["embed"], tokens, context, config.dtype, past)
    if store and past:
        store.pasts = {0: past}
    if (count := config.parallel.num_copies) > 1:
        x, context = config.parallel.by_row(x), context.repeated(count)
    x = config.block.opened(constrain(x, ("batch", "length", None)))
    if config.ends["prelude"]:
        x, report = by_name["prelude"].walk(x, context)
    return _resized(params, x, config, "up"), context, report


def _resized(params: Params, x: Array, config: Model, way: str) -> Array:
    """Returns states in the width of the core ("up") or of its ends ("down")."""
    if not config.is_resized:
        return x
    weights = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params["resize"][way])
    return constrain(affine.normed(weights, x, config.block.norm_eps), ("batch", "length", None))


def embedded(params: Params, tokens: Int[Array, "B T"], config: Model) -> Float[Array, "B T D"]:
    """Returns the states that enter the core."""
    context = _context(config, tokens.shape, None, None)
    return enter(params, tokens, config, context, stacks_of(params, config))[0]


def _context(
    config: Model, shape: tuple[int, ...], positions: Array | None, segment_ids: Array | None
) -> Context:
    along = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    if positions is None and segment_ids is None:
        config.embed.check_length(shape[1])
    return Context(
        along if positions is None else positions,
        segment_ids,
        is_live=None if segment_ids is None else segment_ids != PADDING,
        multiplier=multiplier(config),
        is_row=positions is None,
    )


def multiplier(config: Model) -> Array | None:
    """Returns the factor of what branches add to the residual stream; None leaves it as it is."""
    branch = config.parameterisation.branch(config.size)
    return None if branch == 1 else jnp.float32(branch)


def read(
    params: Params,
    state: Float[Array, "B T E"],
    config: Model,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Returns the head's input of a recursion's states, as if they were the last (logit lens).

    Like those of the last recursion, they go through loop norm, coda and final norm. The other
    arguments are those of `apply`.
    """
    context = _context(config, state.shape[:2], positions, segment_ids)
    if (count := config.parallel.num_copies) > 1:
        state, context = config.parallel.split(state), context.repeated(count)
    return finish(params, state, context, config, stacks_of(params, config))[0]


def finish(
    params: Params, x: Array, context: Context, config: Model, by_name: Mapping[str, Stack]
) -> tuple[Array, Report]:
    """Returns the head's input of the states after the core, and the report of the coda."""
    if config.loop_norm == "last":
        x = _norm(params, x, config)
    x = _resized(params, x, config, "down")
    report: Report = {}
    if coda := config.ends["coda"]:
        x, report = by_name["coda"].walk(x, dataclasses.replace(context, inputs=None))
    x = config.block.states(x)
    if config.loop_norm != "each" or coda:
        x = _norm(params, x, config)
    return _before_head(params, x, config), report


def stacks_of(params: Params, config: Model, remat: Remat = KEEP) -> dict[str, Stack]:
    """Returns the stacks by name: prelude, core and coda."""

    def read(x: Array, context: Context) -> Array:
        return logits(params, finish(params, x, context, config, found)[0], config)

    norm = functools.partial(_norm, params, config=config) if config.loop_norm == "each" else None
    found = stacks.with_weights(params, config, remat, norm, read)
    return found


def _norm(params: Params, x: Array, config: Model) -> Array:
    if "final_norm" not in params:
        return x
    weights = jax.tree.map(lambda p: p.astype(x.dtype), params["final_norm"])
    states = norm(config.block.states(x), weights, config.block.norm_eps)
    return states if states.shape == x.shape else config.block.renewed(x, states)


def normalise(params: Params, x: Array, config: Model) -> Array:
    """Returns the head's input of a recursion's states through the final norm, without the coda."""
    x = _resized(params, config.block.states(x), config, "down")
    x = x if config.loop_norm == "each" else _norm(params, x, config)
    return _before_head(params, x, config)


def _before_head(params: Params, x: Array, config: Model) -> Array:
    if config.parallel.num_copies > 1:
        x = config.parallel.average(params["parallel"], x)
    scale = config.embed.logit_scale * config.parameterisation.logits(config.size)
    return config.embed.before_head(params["embed"], x, scale)


def logits(params: Params, hidden: Float[Array, "*B D"], config: Model) -> Float[Array, "*B V"]:
    """Returns float32 next-token logits of normalised hidden states."""
    head = config.embed.head(params["embed"])
    scores = dot(hidden, head["matrix"].astype(hidden.dtype), "d,vd->v").astype(jnp.float32)
    return capped(scores + head["bias"] if "bias" in head else scores, head)
