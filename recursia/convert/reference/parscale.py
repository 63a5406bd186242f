"""Parallel streams around a Qwen2, as the released code of ParScale computes them.

Chen et al. 2025 (arXiv 2505.10475). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The average reads states whose channels are interleaved: feature = channel P + stream.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from recursia import model
from recursia.architecture import Model
from recursia.convert.reference import Case, Compared, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.embeddings.table import Table
from recursia.layers import norm
from recursia.mixers.grouped_query import GroupedQuery
from recursia.parallel import Parallel
from recursia.params import Params


def case(file: Arrays) -> Case:
    """Returns a model, and what of it the file's arrays hold.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    ours, tokens = config(json.loads(str(file["config"]))), file["tokens"]

    def arrays(_: Any, params: Params) -> Compared:
        is_one = ours.parallel.num_copies == 1
        return [] if is_one else [("stream_weights", _shares(params, tokens, ours))]

    return Case(
        config=ours,
        params=functools.partial(weights, ours),
        tokens=tokens,
        targets=trees.next_tokens(tokens),
        arrays=arrays,
    )


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("parscale", theirs, {"use_sliding_window": False})
    block = llama.block(theirs, "parscale")
    has = {"has_bias": True, "has_value_bias": True, "has_out_bias": False}  # as in any Qwen2
    mixer = dataclasses.replace(trees.narrow(block.mixer, GroupedQuery), **has)
    return Model(
        num_layers=theirs["num_hidden_layers"],
        vocab_size=theirs["vocab_size"],
        block=dataclasses.replace(block, mixer=mixer),
        depth=Fixed(1),
        parallel=Parallel(
            num_copies=theirs["parscale_n"],
            prefix_tokens=theirs["parscale_n_tokens"],
            smoothing=theirs["parscale_attn_smooth"],
        ),
        embed=Table(is_tied=bool(theirs.get("tie_word_embeddings"))),
    )


def weights(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    count, width = config.parallel.num_copies, config.block.embed_dim

    def layer(step: int) -> Params:
        prefix, own = f"model.layers.{step}", {}
        if count > 1:
            of = lambda name: named[f"{prefix}.self_attn.prefix_{name}"].swapaxes(1, 2)
            own = {"prefix": {"key": of("k"), "value": of("v")}}
        return llama.weights(config.block, named, prefix) | own

    sections: Params = {"core": trees.banks(config, layer)}
    if count > 1:
        of = lambda name: named[f"model.aggregate_layer.{name}"]
        sections["parallel"] = {
            "hidden": of("0.weight").T.reshape(width, count, width).swapaxes(0, 1),
            "hidden_bias": of("0.bias"),
            "score": of("2.weight").T,
            "score_bias": of("2.bias"),
        }
    return llama.complete(config, named, sections)


@functools.partial(jax.jit, static_argnames="config")
def _shares(params: Params, tokens: Array, config: Model) -> Float[Array, "B T P"]:
    """Returns the weights of a token's streams in the average."""
    states = model.apply(params, tokens, config, mode="eval").aux.states
    rows = config.parallel.split(trees.narrow(states, Array)[-1])
    rows = norm.normalise(rows, params["final_norm"], config.block.norm_eps)
    return config.parallel.shares(params["parallel"], rows)
