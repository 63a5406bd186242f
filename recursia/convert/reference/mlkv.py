"""Configurations and parameters of multi-layer key-value sharing: zaydzuhri/pythia-mlkv.

Zuhri et al. 2024 (arXiv 2406.09297), on GPT-NeoX. In the released forward pass a layer shares its
keys as they were before rotation: a layer that reads them compares a rotated query with keys
without positions. Decoding from its KV cache does not. Here shared keys are rotated; the logits of
that model are `rotated_logits` in a file. Its other arrays are compared with a mixer that shares
keys as released.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from recursia import kv, model
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.parallel_norm import ParallelNorm
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case, Compared, aliases, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.gelu import GELU
from recursia.feedforward.relu import ReLU
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Report
from recursia.layers.past import Made, Source
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

ACTIVATIONS = {"gelu": GELU, "relu": ReLU}
# Options of their configuration for which only this value is read.
REQUIRED = {"use_key_value_mlp": False, "rope_scaling": None}


@dataclasses.dataclass(frozen=True)
class Released(GroupedQuery):
    """Attention that reads its own keys rotated and shares them as they were before rotation."""

    def keys_values(
        self, params: Params, x: Array, h: Array, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys before rotation, and values."""
        plain = dataclasses.replace(self, rope_base=None)
        return GroupedQuery.keys_values(plain, params, x, h, context)

    def apply(
        self,
        params: Params,
        x: Array,
        h: Array,
        context: Context,
        source: Source | None = None,
        memory: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Made | None, Report]:
        """Returns what a mixer does, with keys before rotation."""
        if source is not None:
            return super().apply(params, x, h, context, source, memory)
        made, _ = self.keys_values(params, *(memory or (x, h)), context)
        own_key: Any = made.key
        own = dataclasses.replace(made, key=self.rotated(own_key, context)), context
        y, _, report = super().apply(params, x, h, context, own)
        return y, made, report


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    is_tied = bool(theirs.get("tie_word_embeddings")) or "embed_out.weight" in aliases(file)
    released, rotated = (config(theirs, is_tied, mixer) for mixer in (Released, GroupedQuery))

    def arrays(aux: Aux, weights: Params) -> Compared:
        return [("rotated_logits", _logits(weights, tokens, rotated))]

    convert = functools.partial(params, released)
    return Case(released, convert, tokens, trees.next_tokens(tokens), arrays=arrays)


@functools.partial(jax.jit, static_argnames="config")
def _logits(weights: Params, tokens: Array, config: Model) -> Array:
    out = model.apply(weights, tokens, config, mode="eval")
    return model.logits(weights, out.hidden, config)


def config(
    theirs: Mapping[str, Any], is_tied: bool, mixer: type[GroupedQuery] = GroupedQuery
) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      is_tied: whether the head is tied to the embedding.
      mixer: class of the mixer.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("mlkv", theirs, REQUIRED)
    if (act := theirs.get("hidden_act", "gelu")) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"mlkv.hidden_act: got {act!r}, and only {known} are read here")
    layers, heads = theirs["num_hidden_layers"], theirs["num_attention_heads"]
    width, fraction = theirs["hidden_size"], theirs.get("rotary_pct", 0.25)
    if (turned := int(width // heads * fraction)) % 2:
        raise ConfigError(
            f"mlkv.rotary_pct: {fraction} rotates {turned} numbers of a head; take 2n"
        )
    attention = mixer(
        num_heads=heads,
        num_kv_heads=theirs.get("num_key_value_heads") or heads,
        head_dim=width // heads,
        rope_base=float(theirs.get("rotary_emb_base", 10_000)),
        rope_fraction=float(fraction),
        has_bias=True,
        has_value_bias=True,
    )
    arrangement = ParallelNorm if theirs.get("use_parallel_residual", True) else PreNorm
    return Model(
        num_layers=layers,
        vocab_size=theirs["vocab_size"],
        block=arrangement(
            embed_dim=width,
            mixer=attention,
            feedforward=ACTIVATIONS[act](mlp_dim=theirs["intermediate_size"]),
            norm="layer",
            norm_eps=float(theirs.get("layer_norm_eps", 1e-5)),
        ),
        depth=Fixed(1),
        kv=kv.Plan((_sources(layers, theirs.get("num_key_value_layers") or layers),)),
        embed=Table(is_tied=is_tied),
    )


def _sources(layers: int, makers: int) -> tuple[int, ...]:
    """Returns the layer whose keys each layer reads; their code rounds a float down."""
    owners = {0, *(int((i + 1) * (layers / makers)) for i in range(makers - 1))}
    return tuple(max(owner for owner in owners if owner <= layer) for layer in range(layers))


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    makes_keys = lambda step: bool(config.schedule.owners[step] == step)
    layer = lambda step: _layer(
        config.block, under(named, f"gpt_neox.layers.{step}."), makes_keys(step)
    )
    return trees.complete(
        {
            "embed": trees.embedding(config, named, "gpt_neox.embed_in", "embed_out"),
            "core": trees.banks(config, layer),
            "final_norm": trees.layer_norm(named, "gpt_neox.final_layer_norm"),
        }
    )


def _layer(block: Block, named: Arrays, makes_keys: bool) -> Params:
    mixer = trees.narrow(block.mixer, GroupedQuery)
    attention: Params = {
        "out": trees.from_heads(named["attention.dense.weight"], mixer.num_heads),
        "out_bias": named["attention.dense.bias"],
    }
    keys = {"key": mixer.num_kv_heads, "value": mixer.num_kv_heads} if makes_keys else {}
    for name, heads in {"query": mixer.num_heads, **keys}.items():
        attention[name] = trees.to_heads(named[f"attention.{name}.weight"], heads)
        attention[f"{name}_bias"] = named[f"attention.{name}.bias"].reshape(heads, -1)
    mlp = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}
    weights = {name: named[f"mlp.{layer}.weight"].T for name, layer in mlp.items()}
    biases = {f"{name}_bias": named[f"mlp.{layer}.bias"] for name, layer in mlp.items()}
    return {
        "norms": {
            "attention": trees.layer_norm(named, "input_layernorm"),
            "mlp": trees.layer_norm(named, "post_attention_layernorm"),
        },
        "attention": attention,
        "mlp": {**weights, **biases},
    }
