"""Configurations and parameters of layers that read the keys of other layers: whyNLP/LCKV.

Wu & Tu 2024 (arXiv 2405.10637) and Wu et al. 2024 (arXiv 2410.14442), whose code expresses CLA and
YOCO too. Names are those of its `state_dict`; a layer that reads the keys of another has no
projections of keys and values. `decode_logits` are those of decoding token by token, with which
mode "causal" is compared.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from recursia import kv, model
from recursia.architecture import Model
from recursia.convert.reference import Case, Compared, aliases, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.params import Params


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    is_tied = bool(theirs.get("tie_word_embeddings")) or "lm_head.weight" in aliases(file)
    ours = config(theirs, is_tied)

    def decoded(aux: Aux, weights: Params) -> Compared:
        has_some = "decode_logits" in file
        return [("decode_logits", _decoded(weights, tokens, ours))] if has_some else []

    read, targets = functools.partial(params, ours), trees.next_tokens(tokens)
    return Case(ours, read, tokens, targets, arrays=decoded)


@functools.partial(jax.jit, static_argnames="config")
def _decoded(weights: Params, tokens: Array, config: Model) -> Array:
    """Returns the logits of decoding."""
    out = model.apply(weights, tokens, config, mode="causal")
    return model.logits(weights, out.hidden, config)


def config(theirs: Mapping[str, Any], is_tied: bool) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      is_tied: whether the head is tied to the embedding.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("lckv", theirs, {"force_nodiag": False})
    layers = theirs["num_hidden_layers"]
    sources, has_window = _layer_types(theirs.get("layer_types"), layers)
    window = theirs.get("sliding_window", 4096) or 0
    return Model(
        num_layers=layers,
        vocab_size=theirs["vocab_size"],
        block=llama.block(theirs, "lckv"),
        depth=Fixed(1),
        kv=kv.Plan(
            (sources,),
            (tuple(window * is_used for is_used in has_window),),
            num_free_passes=theirs.get("forward_passes", 7),
            num_trained_passes=theirs.get("backward_passes", 2),
        ),
        embed=Table(is_tied=is_tied),
    )


def _layer_types(types: str | None, layers: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns the layer whose keys each layer reads, and whether it reads a window of them."""
    entries = ("_".join(map(str, range(layers))) if types is None else types).split("_")
    if len(entries) != layers or not all(re.fullmatch(r"\d+s?", entry) for entry in entries):
        raise ConfigError(
            f"lckv.layer_types: got {types!r}, takes {layers} numbers of layers, with an 's' after "
            "those that see a window"
        )
    sources = tuple(int(entry.removesuffix("s")) for entry in entries)
    for layer, source in enumerate(sources):
        if source >= layers or sources[source] != source:
            raise ConfigError(
                f"lckv.layer_types: layer {layer} reads keys of layer {source}, which makes none; "
                "name a layer that reads its own"
            )
    return sources, tuple(entry.endswith("s") for entry in entries)


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    makes_keys = lambda step: bool(config.schedule.owners[step] == step)
    layer = lambda step: llama.weights(
        config.block, named, f"model.layers.{step}", makes_keys(step)
    )
    return llama.complete(config, named, {"core": trees.banks(config, layer)})
