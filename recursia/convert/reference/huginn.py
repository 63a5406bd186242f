"""Configurations and parameters of the authors' PyTorch code, as ours.

Huginn (Geiping et al. 2025, arXiv 2502.05171): seal-rg/recurrent-pretraining. Names are those of
its `state_dict`; a linear weight is `[out, in]`. Sizes are read from the arrays, and numbers of
blocks from the names: the vocabulary is the padded one.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recursia import injection, model
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_post_norm import PrePostNorm
from recursia.convert.reference import Case, aliases, under
from recursia.depth import recurrent
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers import embedding
from recursia.mixers.grouped_query import GroupedQuery

# What their configuration may say, where only one thing is read.
READ = {
    "block_class_name": "SandwichBlock",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
    "qk_bias": True,
    "bias": False,
    "test_time_noise": 0,
}


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of this family asks of us."""
    named = under(file, "param/")
    is_tied = "lm_head.weight" in aliases(file) or "lm_head.weight" not in named
    ours = config(json.loads(str(file["config"])), named, is_tied, *map(int, file["num_steps"]))
    tokens, options = np.asarray(file["tokens"]), {"state": jnp.asarray(file["initial_state"])}
    shapes = {name: array.shape for name, array in named.items()}

    def latent(aux: Aux, weights: Any) -> list[tuple[str, Any]]:
        return [("latent_state", _latent(weights, tokens[:, :-1], options["state"], ours))]

    read = functools.partial(params, ours, shapes)
    return Case(ours, read, tokens[:, :-1], tokens[:, 1:], options, arrays=latent)


@functools.partial(jax.jit, static_argnames="config")
def _latent(weights: Any, tokens: Any, state: Any, config: Model) -> Any:
    """Returns the normalised state after the last recursion."""
    out = model.apply(weights, tokens, config, mode="eval", state=state)
    return model.normalise(weights, out.aux.states[-1], config)


def config(
    theirs: dict[str, Any],
    named: Mapping[str, np.ndarray],
    is_tied: bool,
    free: int,
    trained: int,
) -> Model:
    """Returns our configuration of their model, walked a given number of times.

    Args:
      theirs: their hyper-parameters.
      named: their parameters by name.
      is_tied: whether the head is the embedding.
      free: recursions without a gradient.
      trained: recursions with one, after those.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    for option, value in READ.items():
        if theirs.get(option, value) != value:
            raise ConfigError(
                f"reference: {option} {theirs[option]!r} is not read here; {value!r} is"
            )
    if free + trained < 1:
        raise ConfigError(
            f"reference: num_steps [{free}, {trained}] is not read here; 1 or more is"
        )
    first, count = "transformer.core_block.0.", functools.partial(_count, named)
    _, _, heads, head_dim = named[f"{first}attn.qk_bias"].shape
    vocab_size, width = named["transformer.wte.weight"].shape
    prelude, blocks, coda = map(count, ("prelude", "core_block", "coda"))
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
        embed=embedding.Embedding(is_tied=is_tied, scale=math.sqrt(width)),
        inject=injection.Injection(input="adapter"),
        loop_norm="last",
    )


def _count(named: Mapping[str, np.ndarray], part: str) -> int:
    pattern = re.compile(rf"transformer\.{part}\.(\d+)\.")
    return 1 + max((int(m[1]) for name in named if (m := pattern.match(name))), default=-1)


def params(
    config: Model, shapes: Mapping[str, tuple[int, ...]], named: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names.

    Args:
      config: our model.
      shapes: of all their parameters.
      named: the arrays. Where no recursion has a gradient, those that are not there are 0.
    """
    if config.depth.backprop_depth == 0:
        named = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | {**named}

    def stacked(part: str, count: int) -> dict[str, Any]:
        blocks = [_block(config.block, named, f"transformer.{part}.{i}") for i in range(count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks) if blocks else {}

    embed = {"table": named["transformer.wte.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["lm_head.weight"]
    return {
        "embed": embed,
        "prelude": stacked("prelude", config.ends["prelude"]),
        "core": stacked("core_block", config.schedule.num_blocks),
        "coda": stacked("coda", config.ends["coda"]),
        "depth": {},
        "inject": {"adapter": named["transformer.adapter.weight"].T},
        "final_norm": named["transformer.ln_f.weight"],
    }


def _block(block: Block, named: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    w = lambda name: named[f"{prefix}.{name}.weight"]
    d, n, h = block.embed_dim, block.mixer.num_heads, block.mixer.head_dim
    query, key, value = (rows.T.reshape(d, n, h) for rows in np.split(w("attn.Wqkv"), 3))
    query_bias, key_bias = named[f"{prefix}.attn.qk_bias"].reshape(2, n, h)
    gate, up = np.split(w("mlp.fc"), 2)
    norms = ("attention", "after_attention", "mlp", "after_mlp")
    return {
        "norms": {name: w(f"norm_{i}") for i, name in enumerate(norms, 1)},
        "attention": {
            "query": query,
            "query_bias": query_bias,
            "key": key,
            "key_bias": key_bias,
            "value": value,
            "out": w("attn.proj").T.reshape(n, h, d),
        },
        "mlp": {"gate": gate.T, "up": up.T, "down": w("mlp.proj").T},
    }
