"""Tokens to logits: embed, prelude, recursions, coda, head.

Block, grid and depth policy meet only here.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from recursia import kv as kv_source
from recursia import params as parameters
from recursia.depth.policy import Aux, Mode
from recursia.layers import embedding
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.layers.norm import rms_norm
from recursia.params import Leaf, Spec, ones
from recursia.sharding import constrain
from recursia.sharing import grid as sharing
from recursia.sharing.core import Core, Remat, run_stack


@dataclasses.dataclass(frozen=True)
class Config:
    """A point on the axes.

    Attributes:
      vocab_size: rows of the embedding.
      block: the `Config` of a module in `recursia.blocks`.
      depth: the `Config` of a module in `recursia.depth`.
      grid: which steps share which weights.
      kv: whose keys and values a step reads.
      embed: embedding and head.
      dtype: compute dtype; parameters are float32.
      remat: what the backward pass computes again.
    """

    vocab_size: int
    block: Any
    depth: Any
    grid: sharing.Grid
    kv: kv_source.Config
    embed: embedding.Config
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"


@struct.dataclass
class Output:
    """What a forward pass gives.

    Attributes:
      hidden: states of the last layer, normalised: `logits` multiplies them by the head.
      aux: what the depth policy reports.
    """

    hidden: Leaf  # [B T D]
    aux: Aux


def module(config: Any) -> ModuleType:
    """Returns the block or depth policy whose config this is."""
    return importlib.import_module(type(config).__module__)


def specs(config: Config) -> dict[str, Any]:
    """Returns the parameters of a model, as specs.

    Raises:
      ValueError: if the depth policy cannot walk the grid.
    """
    d = config.block.embed_dim
    depth = module(config.depth)
    depth.check(config.depth, config.grid)
    return {
        "embed": embedding.specs(config.embed, config.vocab_size, d),
        **sharing.specs(config.grid, module(config.block).specs(config.block)),
        "depth": depth.specs(config.depth, config.grid, d),
        "final_norm": Spec((d,), (None,), ones, is_decayed=False),
    }


def apply(
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    config: Config,
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    mode: Mode,
    step: Int[Array, ""] | None = None,
) -> Output:
    """Returns the final hidden states of every token.

    Args:
      params: float32 parameters of `specs(config)`.
      tokens: ids in [0, vocab_size).
      config: the model.
      positions: of the tokens in their documents; None counts along the row.
      segment_ids: tokens see only their own segment; None makes the row one.
      mode: "train", "eval" (as published) or "causal" (as decoding will decide).
      step: the training step, for policies whose training changes with it.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    context = Context(positions, segment_ids)
    x = constrain(embedding.lookup(params["embed"], tokens, config.dtype), ("batch", None, None))
    x = _ends(params["prelude"], x, context, config)
    core = Core(
        config.grid,
        module(config.block),
        config.block,
        params["core"],
        {slot: jnp.array(table) for slot, table in config.grid.tables if slot in params["core"]},
        config.kv,
        config.dtype,
        config.remat,
    )
    run = module(config.depth).run
    x, aux = run(core, params["depth"], x, context, config.depth, mode=mode, step=step)
    x = _ends(params["coda"], x, context, config)
    return Output(normalise(params, x, config), aux)


def _ends(bank: dict[str, Any], x: Array, context: Context, config: Config) -> Array:
    """Applies the blocks of a prelude or coda, each with its own weights."""
    if not bank:
        return x
    block = module(config.block)

    def step(weights: dict[str, Any], x: Array, _: None) -> tuple[Array, None]:
        weights = jax.tree.map(lambda p: p.astype(config.dtype), weights)
        return block.apply(weights, x, context, config.block)[0], None

    if config.remat != "none":
        step = jax.checkpoint(step, prevent_cse=False)
    return run_stack(step, x, bank)[0]


def normalise(params: dict[str, Any], x: Array, config: Config) -> Array:
    """Returns hidden states as the head takes them; also of a state on its way (logit lens)."""
    return rms_norm(x, params["final_norm"].astype(x.dtype), config.block.norm_eps)


def logits(
    params: dict[str, Any], hidden: Float[Array, "*B D"], config: Config
) -> Float[Array, "*B V"]:
    """Returns float32 next-token logits of normalised hidden states."""
    head = embedding.head(params["embed"]).astype(hidden.dtype)
    return dot(hidden, head, "d,vd->v").astype(jnp.float32)


def at_depth(
    config: Config, params: dict[str, Any], num_recursions: int
) -> tuple[Config, dict[str, Any]]:
    """Returns the model that walks its core `num_recursions` times, with the same weights.

    Raises:
      ValueError: for a depth that some slot or the depth policy has no weights for.
    """
    grid = config.grid.at_depth(num_recursions)
    depth = module(config.depth).at_depth(config.depth, num_recursions)
    config = dataclasses.replace(config, grid=grid, depth=depth)
    kept = {name: specs(config)[name] for name in ("core", "depth")}
    first = jax.tree.map(lambda spec, p: p[: spec.shape[0]], kept, {n: params[n] for n in kept})
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
