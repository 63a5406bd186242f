"""Configurations and parameters of Huginn, as ours: seal-rg/recurrent-pretraining.

Geiping et al. 2025 (arXiv 2502.05171). Names are those of its `state_dict`; a linear weight is
`[out, in]`. Sizes are read from the arrays and numbers of blocks from the names; the vocabulary is
the padded one.
"""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import injection, model
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_post_norm import PrePostNorm
from recursia.convert.reference import Case, Compared, aliases, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth import recurrent
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

# Options of their configuration for which only this value is read.
REQUIRED = {
    "block_class_name": "SandwichBlock",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
    "qk_bias": True,
    "bias": False,
    "test_time_noise": 0,
}


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    named = under(file, "param/")
    is_tied = "lm_head.weight" in aliases(file) or "lm_head.weight" not in named
    ours = config(json.loads(str(file["config"])), named, is_tied, *map(int, file["num_steps"]))
    tokens, options = np.asarray(file["tokens"]), {"state": jnp.asarray(file["initial_state"])}
    shapes = {name: array.shape for name, array in named.items()}

    def latent(aux: Aux, weights: Params) -> Compared:
        return [("latent_state", _latent(weights, tokens[:, :-1], options["state"], ours))]

    read = functools.partial(params, ours, shapes)
    return Case(ours, read, tokens[:, :-1], tokens[:, 1:], options, arrays=latent)


@functools.partial(jax.jit, static_argnames="config")
def _latent(weights: Params, tokens: Array, state: Array, config: Model) -> Array:
    """Returns the normalised state after the last recursion."""
    out = model.apply(weights, tokens, config, mode="eval", state=state)
    return model.normalise(weights, trees.narrow(out.aux.states, Array)[-1], config)


def config(
    theirs: Mapping[str, Any],
    named: Arrays,
    is_tied: bool,
    free: int,
    trained: int,
) -> Model:
    """Returns our configuration of their model with a given number of recursions.

    Args:
      theirs: their hyper-parameters.
      named: their parameters by name.
      is_tied: whether the head is tied to the embedding.
      free: recursions without a gradient.
      trained: recursions with a gradient, after the free ones.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("huginn", theirs, REQUIRED)
    if free + trained < 1:
        raise ConfigError(f"huginn.num_steps: got [{free}, {trained}], takes 1 or more in all")
    first = "transformer.core_block.0."
    _, _, heads, head_dim = named[f"{first}attn.qk_bias"].shape
    vocab_size, width = named["transformer.wte.weight"].shape
    prelude, blocks, coda = (
        trees.count(named, rf"^transformer\.{stack}\.(\d+)\.")
        for stack in ("prelude", "core_block", "coda")
    )
    return Model(
        num_layers=prelude + (free + trained) * blocks + coda,
        sharing="cycle",
        prelude=prelude,
        coda=coda,
        vocab_size=vocab_size,
        block=PrePostNorm(
            embed_dim=width,
            mixer=GroupedQuery(
                num_heads=heads,
                num_kv_heads=heads,
                head_dim=head_dim,
                rope_base=float(theirs.get("rope_base", 50_000)),
                rope_layout="interleaved",
                has_bias=True,
            ),
            feedforward=SwiGLU(mlp_dim=named[f"{first}mlp.proj.weight"].shape[1]),
            norm_eps=float(theirs.get("norm_eps", 1e-6)),
        ),
        depth=recurrent.Recurrent(free + trained, backprop_depth=trained, sampler="fixed"),
        embed=Table(is_tied=is_tied, scale=math.sqrt(width)),
        inject=injection.Injection(input="adapter"),
        loop_norm="last",
    )


def params(config: Model, shapes: Mapping[str, tuple[int, ...]], named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name.

    Args:
      config: our model.
      shapes: shapes of all their parameters.
      named: the arrays. If no recursion has a gradient, the missing ones are 0.
    """
    if trees.narrow(config.depth, recurrent.Recurrent).backprop_depth == 0:
        named = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | {**named}
    blocks = lambda stack, count: trees.stack(
        _block(config.block, named, f"transformer.{stack}.{i}") for i in range(count)
    )
    return trees.complete(
        {
            "embed": trees.embedding(config, named, "transformer.wte", "lm_head"),
            "prelude": blocks("prelude", config.ends["prelude"]),
            "core": blocks("core_block", config.schedule.num_blocks),
            "coda": blocks("coda", config.ends["coda"]),
            "inject": {"adapter": named["transformer.adapter.weight"].T},
            "final_norm": named["transformer.ln_f.weight"],
        }
    )


def _block(block: Block, named: Arrays, prefix: str) -> Params:
    weight = lambda name: named[f"{prefix}.{name}.weight"]
    n = block.mixer.num_heads
    query, key, value = (trees.to_heads(w, n) for w in np.split(weight("attn.Wqkv"), 3))
    query_bias, key_bias = named[f"{prefix}.attn.qk_bias"].reshape(2, n, -1)
    gate, up = np.split(weight("mlp.fc"), 2)
    norms = ("attention", "after_attention", "mlp", "after_mlp")
    return {
        "norms": {name: weight(f"norm_{i}") for i, name in enumerate(norms, 1)},
        "attention": {
            "query": query,
            "query_bias": query_bias,
            "key": key,
            "key_bias": key_bias,
            "value": value,
            "out": trees.from_heads(weight("attn.proj"), n),
        },
        "mlp": {"gate": gate.T, "up": up.T, "down": weight("mlp.proj").T},
    }
