"""Blocks of transformers' Llama, on which authors build: configurations and parameters, as ours.

A linear weight is `[out, in]`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recursia.blocks.block import Block
from recursia.blocks.pre_norm import PreNorm
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery

# What a configuration may say, where only one thing is read.
READ = {"mlp_bias": False, "hidden_act": "silu", "rope_scaling": None, "attention_dropout": 0.0}


def block(theirs: Mapping[str, Any], section: str) -> Block:
    """Returns our configuration of a layer.

    Args:
      theirs: hyper-parameters of the model.
      section: where they stand, for messages.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    for option, value in READ.items():
        if (got := theirs.get(option) or value) != value:
            raise ConfigError(f"{section}.{option}: got {got!r}, and only {value!r} is read here")
    heads = theirs["num_attention_heads"]
    mixer = GroupedQuery(
        num_heads=heads,
        num_kv_heads=theirs.get("num_key_value_heads") or heads,
        head_dim=theirs.get("head_dim") or theirs["hidden_size"] // heads,
        rope_base=float(theirs.get("rope_theta", 10_000)),
        has_bias=bool(theirs.get("attention_bias")),
        has_value_bias=bool(theirs.get("attention_bias")),
    )
    return PreNorm(
        embed_dim=theirs["hidden_size"],
        mixer=mixer,
        feedforward=SwiGLU(mlp_dim=theirs["intermediate_size"]),
        norm_eps=float(theirs.get("rms_norm_eps", 1e-6)),
    )


def weights(
    block: Block, named: Mapping[str, np.ndarray], prefix: str, makes_keys: bool = True
) -> dict[str, Any]:
    """Returns a layer's parameters by slot.

    Args:
      block: our configuration.
      named: all parameters by name.
      prefix: of the layer's.
      makes_keys: whether the layer has weights that make keys and values.
    """
    width, h = block.embed_dim, block.mixer.head_dim
    counts = {"query": ("q", block.mixer.num_heads)}
    if makes_keys:
        counts |= {name: (name[0], block.mixer.num_kv_heads) for name in ("key", "value")}
    array = lambda name, kind="weight": named[f"{prefix}.{name}.{kind}"]
    attention = {"out": array("self_attn.o_proj").T.reshape(block.mixer.num_heads, h, width)}
    for name, (letter, n) in counts.items():
        attention[name] = array(f"self_attn.{letter}_proj").T.reshape(width, n, h)
    if block.mixer.has_bias:
        attention["out_bias"] = array("self_attn.o_proj", "bias")
        for name, (letter, n) in counts.items():
            attention[f"{name}_bias"] = array(f"self_attn.{letter}_proj", "bias").reshape(n, h)
    norms = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
    return {
        "norms": {ours: array(name) for ours, name in norms.items()},
        "attention": attention,
        "mlp": {name: array(f"mlp.{name}_proj").T for name in ("gate", "up", "down")},
    }
