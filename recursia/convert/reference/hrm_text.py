"""Configurations and parameters of HRM-Text, as ours: sapientinc's code as transformers has it.

Its two modules `L_module` and `H_module` have as many layers each; they are the low and the high
blocks of depth policy nested. Norms have no weights, and the head is not tied.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.nested import Nested
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

# Options of a configuration for which only this value is read.
REQUIRED = {"prefix_lm": False, "tie_word_embeddings": False, "hidden_act": "silu"}
LEVELS = ("L", "H")  # in the order of the groups of blocks


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    ours = config(json.loads(str(file["config"])), file)
    tokens = np.asarray(file["tokens"])
    return Case(ours, functools.partial(params, ours), tokens, trees.next_tokens(tokens))


def config(theirs: Mapping[str, Any], names: Iterable[str]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      names: names of a file's arrays, from which layers are counted.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("hrm_text", theirs, REQUIRED)
    rope = theirs.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"hrm_text.rope_type: got {rope['rope_type']!r}, and only 'default' is read here"
        )
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    high, low = theirs["H_cycles"], theirs["L_cycles"]
    layers = trees.count(names, r"model\.L_module\.layers\.(\d+)\.")
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
        embed=Table(is_tied=False, scale=1 / theirs.get("initializer_range", 0.02)),
        vocab_size=theirs["vocab_size"],
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name; an array without a gradient is 0."""
    block, layers = config.block, range(config.schedule.num_blocks)
    prefixes = [f"model.{level}_module.layers.{layer}" for level in LEVELS for layer in layers]
    start = named.get("model.z_L_init", np.zeros(block.embed_dim, np.float32))
    return trees.complete(
        {
            "embed": trees.embedding(config, named, "model.embed_tokens", "lm_head"),
            "core": trees.stack(_layer(block, named, prefix) for prefix in prefixes),
            "depth": {"low_start": start},
            "final_norm": {},
        }
    )


def _layer(block: Block, named: Arrays, prefix: str) -> Params:
    attention = llama.attention(block, named, f"{prefix}.self_attn")
    gate = trees.to_heads(named[f"{prefix}.self_attn.gate_proj.weight"], block.mixer.num_heads)
    return {
        "norms": {"attention": {}, "mlp": {}},
        "attention": {**attention, "gate": gate},
        "mlp": llama.mlp(named, f"{prefix}.mlp"),
    }
