"""Configurations and parameters of HRM-Text, as ours: sapientinc's code as transformers has it.

Two modules of as many layers, `L_module` and `H_module`, are the low and the high blocks of depth
policy nested. Norms have no weights, and the head is not the embedding.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case
from recursia.depth.nested import Nested
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers import embedding
from recursia.mixers.grouped_query import GroupedQuery

# What their configuration may say, where only one thing is read.
READ = {"prefix_lm": False, "tie_word_embeddings": False, "hidden_act": "silu"}
LEVELS = ("L", "H")  # in the order of the groups of blocks
_LAYER = re.compile(r"model\.L_module\.layers\.(\d+)\.")


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of this family asks of us."""
    ours = config(json.loads(str(file["config"])), list(file))
    tokens = np.asarray(file["tokens"])
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)
    return Case(ours, functools.partial(params, ours), tokens, targets)


def config(theirs: dict[str, Any], names: list[str]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      names: of a file's arrays; how many layers a module has stands there.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    for option, value in READ.items():
        if theirs.get(option, value) != value:
            raise ConfigError(
                f"reference: {option} {theirs[option]!r} is not read here; {value!r} is"
            )
    rope = theirs.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"reference: rope_type {rope['rope_type']!r} is not read here; 'default'")
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    high, low = theirs["H_cycles"], theirs["L_cycles"]
    layers = 1 + max(int(m[1]) for name in names if (m := _LAYER.search(name)))
    base = rope.get("rope_theta", theirs.get("rope_theta", 10_000))
    trained = theirs.get("L_bp_cycles") or [2]
    return Model(
        num_layers=layers * high * (low + 1),
        block=PreNorm(
            embed_dim=width,
            mixer=GroupedQuery(
                num_heads=heads,
                num_kv_heads=theirs.get("num_key_value_heads") or heads,
                head_dim=theirs.get("head_dim") or width // heads,
                rope_base=float(base),
                is_gated=True,
            ),
            feedforward=SwiGLU(mlp_dim=theirs["intermediate_size"]),
            norm="unscaled",
            norm_eps=float(theirs.get("rms_norm_eps", 1e-6)),
        ),
        depth=Nested(high * (low + 1), high, tuple(trained)),
        sharing="cycle",
        loop_norm="each",
        embed=embedding.Embedding(is_tied=False, scale=1 / theirs.get("initializer_range", 0.02)),
        vocab_size=theirs["vocab_size"],
    )


def params(config: Model, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names; what has no gradient is 0."""
    blocks = [
        _block(config.block, named, f"model.{level}_module.layers.{layer}")
        for level in LEVELS
        for layer in range(config.schedule.num_blocks)
    ]
    start = named.get("model.z_L_init", np.zeros(config.block.embed_dim, np.float32))
    return {
        "embed": {
            "table": named["model.embed_tokens.weight"],
            "head": named["lm_head.weight"],
        },
        "prelude": {},
        "core": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "coda": {},
        "depth": {"low_start": start},
        "inject": {},
        "final_norm": {},
    }


def _block(config: Any, named: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    mixer, d = config.mixer, config.embed_dim
    w = lambda name: named[f"{prefix}.{name}.weight"]
    heads = lambda name, n: w(f"self_attn.{name}").T.reshape(d, n, mixer.head_dim)
    return {
        "norms": {"attention": {}, "mlp": {}},
        "attention": {
            "query": heads("q_proj", mixer.num_heads),
            "key": heads("k_proj", mixer.num_kv_heads),
            "value": heads("v_proj", mixer.num_kv_heads),
            "gate": heads("gate_proj", mixer.num_heads),
            "out": w("self_attn.o_proj").T.reshape(mixer.num_heads, mixer.head_dim, d),
        },
        "mlp": {name: w(f"mlp.{name}_proj").T for name in ("gate", "up", "down")},
    }
