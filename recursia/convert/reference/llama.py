"""Layers of transformers' Llama, on which several authors build, as ours.

A linear weight is `[out, in]`.
"""

from collections.abc import Mapping
from typing import Any

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import trees
from recursia.convert.reference.trees import Arrays
from recursia.feedforward.feedforward import FeedForward
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

# Options of a configuration for which only this value is read.
REQUIRED = {"mlp_bias": False, "hidden_act": "silu", "rope_scaling": None, "attention_dropout": 0.0}


def block(theirs: Mapping[str, Any], section: str, feedforward: FeedForward | None = None) -> Block:
    """Returns our configuration of a layer.

    Args:
      theirs: hyper-parameters of the model.
      section: where they stand, for messages.
      feedforward: of the layer; None is theirs, SwiGLU.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options(section, theirs, REQUIRED)
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
        feedforward=feedforward or SwiGLU(mlp_dim=theirs["intermediate_size"]),
        norm_eps=float(theirs.get("rms_norm_eps", 1e-6)),
    )


def weights(block: Block, named: Arrays, prefix: str, makes_keys: bool = True) -> Params:
    """Returns a layer's parameters by slot.

    Args:
      block: our configuration.
      named: all parameters by name.
      prefix: prefix of the layer's names.
      makes_keys: whether the layer has weights that make keys and values.
    """
    return {
        "norms": norms(block, named, prefix),
        "attention": attention(block, named, f"{prefix}.self_attn", makes_keys),
        "mlp": mlp(named, f"{prefix}.mlp"),
    }


def norms(block: Block, named: Arrays, prefix: str) -> Params:
    """Returns the norms of a layer's two branches."""
    names = ("input_layernorm", "post_attention_layernorm")
    pairs = zip((block.mixer.norm_name, block.feedforward.norm_name), names, strict=True)
    return {ours: named[f"{prefix}.{name}.weight"] for ours, name in pairs}


def attention(block: Block, named: Arrays, prefix: str, makes_keys: bool = True) -> Params:
    """Returns the parameters of attention; the arguments are those of `weights`."""
    mixer = trees.narrow(block.mixer, GroupedQuery)
    projections = {"query": ("q_proj", mixer.num_heads)}
    if makes_keys:
        projections["key"] = "k_proj", mixer.num_kv_heads
        projections["value"] = "v_proj", mixer.num_kv_heads
    params: Params = {"out": trees.from_heads(named[f"{prefix}.o_proj.weight"], mixer.num_heads)}
    for name, (layer, num_heads) in projections.items():
        params[name] = trees.to_heads(named[f"{prefix}.{layer}.weight"], num_heads)
    if mixer.has_bias:
        for name, (layer, num_heads) in projections.items():
            params[f"{name}_bias"] = named[f"{prefix}.{layer}.bias"].reshape(num_heads, -1)
    if mixer.has_value_bias and mixer.has_out_bias:
        params["out_bias"] = named[f"{prefix}.o_proj.bias"]
    return params


def mlp(named: Arrays, prefix: str) -> Params:
    """Returns the parameters of a SwiGLU feed-forward."""
    return {name: named[f"{prefix}.{name}_proj.weight"].T for name in ("gate", "up", "down")}


def complete(config: Model, named: Arrays, sections: Params) -> Params:
    """Returns a parameter tree with embedding, head and final norm added to its other sections."""
    return trees.complete(
        {
            "embed": trees.embedding(config, named, "model.embed_tokens", "lm_head"),
            "final_norm": named["model.norm.weight"],
            **sections,
        }
    )
