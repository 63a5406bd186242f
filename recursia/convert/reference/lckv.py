"""Configurations and parameters of layers that read the keys of others: whyNLP/LCKV.

Wu & Tu 2024 (arXiv 2405.10637) and Wu et al. 2024 (arXiv 2410.14442), whose code also writes CLA
and YOCO. Names are those of its `state_dict`; a layer that no other reads and that reads another
has no projections of keys and values.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from recursia import kv
from recursia.architecture import Model
from recursia.convert.reference import Case, aliases, banks, llama
from recursia.depth.fixed import Fixed
from recursia.errors import ConfigError
from recursia.layers import embedding


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of this family asks of us."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    is_tied = bool(theirs.get("tie_word_embeddings")) or "lm_head.weight" in aliases(file)
    ours = config(theirs, is_tied)
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)
    return Case(ours, functools.partial(params, ours), tokens, targets)


def config(theirs: dict[str, Any], is_tied: bool) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      is_tied: whether the head is the embedding.

    Raises:
      ConfigError: for an option that has no counterpart here, or keys of a later layer.
    """
    if theirs.get("force_nodiag"):
        raise ConfigError("lckv.force_nodiag: got True, and only False is read here")
    layers = theirs["num_hidden_layers"]
    sources, is_bounded = _layer_types(theirs.get("layer_types"), layers)
    window = theirs.get("sliding_window", 4096) or 0
    return Model(
        num_layers=layers,
        vocab_size=theirs["vocab_size"],
        block=llama.block(theirs, "lckv"),
        depth=Fixed(1),
        kv=kv.Plan((sources,), (tuple(window * each for each in is_bounded),)),
        embed=embedding.Embedding(is_tied=is_tied),
    )


def _layer_types(types: str | None, layers: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns the layer whose keys each layer reads, and whether it sees a window of them."""
    found = ("_".join(map(str, range(layers))) if types is None else types).split("_")
    if len(found) != layers or not all(re.fullmatch(r"\d+s?", each) for each in found):
        raise ConfigError(
            f"lckv.layer_types: got {types!r}, takes {layers} numbers of layers, with an 's' after "
            "those that see a window"
        )
    sources = tuple(int(each.removesuffix("s")) for each in found)
    for layer, source in enumerate(sources):
        if source > layer:
            raise ConfigError(
                f"lckv.layer_types: layer {layer} reads keys of layer {source}, which comes later; "
                "only those of earlier layers are read here"
            )
        if sources[source] != source:
            raise ConfigError(
                f"lckv.layer_types: layer {layer} reads keys of layer {source}, which itself reads "
                f"those of layer {sources[source]}; name a layer that reads its own"
            )
    return sources, tuple(each.endswith("s") for each in found)


def params(config: Model, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names."""
    makes_keys = lambda step: bool(config.schedule.owners[step] == step)
    layer = lambda step: llama.weights(
        config.block, named, f"model.layers.{step}", makes_keys(step)
    )
    embed = {"table": named["model.embed_tokens.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["lm_head.weight"]
    return {
        "embed": embed,
        "prelude": {},
        "core": banks(config, layer),
        "coda": {},
        "depth": {},
        "inject": {},
        "final_norm": named["model.norm.weight"],
    }
