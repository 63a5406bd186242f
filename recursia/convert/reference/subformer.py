"""Configurations and parameters of Subformer: machelreid/subformer, decoders without an encoder.

Reid et al. 2021 (arXiv 2101.00234), on fairseq. The layers between the first and the last share
attention and both matrices of the MLP, and have norms of their own; their width, hidden width and
number of heads may be others. Embeddings are factorised by a layer below the first (SAFE), or not.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.post_norm import PostNorm
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.embeddings.embedding import Embedding
from recursia.embeddings.self_attentive import SelfAttentive
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.gelu import GELU
from recursia.feedforward.relu import ReLU
from recursia.layers.sinusoids import sinusoids
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

ACTIVATIONS = {"relu": ReLU, "gelu": GELU}
# Options of their configuration for which only this value is read.
REQUIRED = {
    "add_independent_layer": False,
    "decoder_learned_pos": False,
    "no_token_positional_embeddings": False,
    "layernorm_embedding": False,
}
FIRST_POSITION = 2  # after the index of padding


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    ours = config(theirs)
    index = np.arange(FIRST_POSITION, FIRST_POSITION + tokens.shape[1] - 1)
    width = ours.embed.row_width(ours.end_block.embed_dim)
    return Case(
        ours,
        functools.partial(params, ours),
        tokens[:, :-1],
        tokens[:, 1:],
        arrays=lambda aux, weights: [("buffer/positions", sinusoids(index, width, "halves"))],
        vanishing=frozenset(
            {"key_bias"}
        ),  # without rotation it adds alike to all of a query's scores
    )


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("subformer", theirs, REQUIRED)
    width, layers = theirs["decoder_embed_dim"], theirs["decoder_layers"]
    own = _block(theirs, width, theirs["decoder_ffn_embed_dim"], theirs["decoder_attention_heads"])
    embed = _embedding(theirs, width)
    if not theirs.get("share_decoder_parameters_sandwich") or layers < 3:
        return Model(layers, own, Fixed(1), embed=embed, vocab_size=theirs["vocab_size"])
    middle, hidden = theirs["sandwich_embed_dim"], theirs["sandwich_ffn_embed_dim"]
    heads = theirs["decoder_attention_heads"]
    return Model(
        num_layers=layers,
        vocab_size=theirs["vocab_size"],
        block=_block(theirs, middle, hidden, heads_of(middle)),
        depth=Fixed(layers - 2),
        sharing="middle_cycle",
        varies=(("norms", "recursion+block"),),
        end_sizes=(
            ("embed_dim", width),
            ("mlp_dim", theirs["decoder_ffn_embed_dim"]),
            ("num_heads", heads),
            ("num_kv_heads", heads),
            ("head_dim", width // heads),
        ),
        embed=embed,
    )


def heads_of(width: int) -> int:
    """Returns the number of heads of the layers whose width alone is set."""
    head = 64 if width % 64 == 0 else width // 10
    head = 128 if head == 64 and width > 1024 else head
    return width // (80 if width == 640 else max(1, head))


def _block(theirs: Mapping[str, Any], width: int, hidden: int, heads: int) -> Block:
    if (act := theirs.get("activation_fn", "relu")) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"subformer.activation_fn: got {act!r}, and only {known} are read here")
    arrangement = PreNorm if theirs.get("decoder_normalize_before") else PostNorm
    return arrangement(width, _attention(width, heads), ACTIVATIONS[act](hidden), norm="layer")


def _attention(width: int, heads: int) -> GroupedQuery:
    how = {"rope_base": None, "has_bias": True, "has_value_bias": True}
    return GroupedQuery(heads, heads, width // heads, **how)


def _embedding(theirs: Mapping[str, Any], width: int) -> Embedding:
    narrow, is_tied = theirs.get("reduction_dim"), theirs["share_decoder_input_output_embed"]
    how: dict[str, Any] = {
        "is_tied": is_tied,
        "scale": 1.0 if theirs.get("no_scale_embedding") else width**0.5,
        "position": "halves",
        "first_position": FIRST_POSITION,
    }
    if not narrow:
        return Table(**how)
    if theirs.get("decoder_normalize_before") or not is_tied:
        raise ConfigError(
            "subformer.reduction_dim: is read with decoder_normalize_before False and a tied head; "
            "the released layer runs with no other widths, and a head of its own is as wide as the "
            "model"
        )
    attention, act = _attention(narrow, heads_of(narrow)), theirs.get("activation_fn", "relu")
    return SelfAttentive(table_dim=narrow, mixer=attention, activation=act, **how)


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    first = int(isinstance(config.embed, SelfAttentive))
    prelude, coda = config.ends.values()
    layer = lambda block, number: _layer(block, under(named, f"layers.{first + number}."))
    end = lambda start, count: trees.stack(
        layer(config.end_block, start + number) for number in range(count)
    )
    after = prelude + config.schedule.num_steps
    sections: Params = {
        "embed": _tables(config, named),
        "prelude": end(0, prelude),
        "core": trees.banks(config, lambda step: layer(config.block, prelude + step)),
        "coda": end(after, coda),
    }
    if config.is_resized:
        names = {"up": "sandwich_project_up", "down": "sandwich_project_down"}
        sections["resize"] = {
            way: _affine(named, f"{name}.0") | {"norm": trees.layer_norm(named, f"{name}.2")}
            for way, name in names.items()
        }
    if config.end_block.final_norm() is not None:
        sections["final_norm"] = trees.layer_norm(named, "layer_norm")
    return trees.complete(sections)


def _tables(config: Model, named: Arrays) -> Params:
    if not isinstance(embed := config.embed, SelfAttentive):
        return trees.embedding(config, named, "embed_tokens", "output_projection")
    inner = under(named, "layers.0.")
    mixer = trees.narrow(embed.mixer, GroupedQuery)
    return {
        "table": named["embed_tokens.weight"],
        "attention": _heads(mixer, inner),
        "attention_norm": trees.layer_norm(inner, "self_attn_layer_norm"),
        "up": _affine(inner, "fc1"),
        "down": _affine(inner, "fc2"),
        "norm": trees.layer_norm(inner, "final_layer_norm"),
        "projection": _affine(named, "output_projection.0"),
    }


def _layer(block: Block, named: Arrays) -> Params:
    both = {"attention": "self_attn_layer_norm", "mlp": "final_layer_norm"}
    mlp: Params = {}
    for ours, name in {"up": "fc1", "down": "fc2"}.items():
        layer = _affine(named, name)
        mlp |= {ours: layer["matrix"], f"{ours}_bias": layer["bias"]}
    return {
        "norms": {ours: trees.layer_norm(named, name) for ours, name in both.items()},
        "attention": _heads(trees.narrow(block.mixer, GroupedQuery), named),
        "mlp": mlp,
    }


def _heads(mixer: GroupedQuery, named: Arrays) -> Params:
    found: Params = {
        "out": trees.from_heads(named["self_attn.out_proj.weight"], mixer.num_heads),
        "out_bias": named["self_attn.out_proj.bias"],
    }
    for ours, name in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
        found[ours] = trees.to_heads(named[f"self_attn.{name}.weight"], mixer.num_heads)
        found[f"{ours}_bias"] = named[f"self_attn.{name}.bias"].reshape(mixer.num_heads, -1)
    return found


def _affine(named: Arrays, name: str) -> Params:
    return {"matrix": named[f"{name}.weight"].T, "bias": named[f"{name}.bias"]}
