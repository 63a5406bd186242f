"""Configurations and parameters of multi-layer key-value sharing: zaydzuhri/pythia-mlkv.

Zuhri et al. 2024 (arXiv 2406.09297), on GPT-NeoX. The released code hands on keys as they were
before rotation, which lose their positions: a layer that reads them compares a rotated query with
keys that are not. Decoding from its own cache does not do that. Here keys are handed on rotated,
which a file has as `rotated_logits`; its other arrays are held by a mixer that does as released.
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
from recursia.convert.reference import Case, aliases, banks, under
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.feedforward.gelu import GELU
from recursia.feedforward.relu import ReLU
from recursia.layers import embedding
from recursia.layers.attention import Context, KeysValues
from recursia.layers.balance import Usage
from recursia.layers.branch import Report
from recursia.mixers.grouped_query import GroupedQuery
from recursia.mixers.mixer import Params

ACTIVATIONS = {"gelu": GELU, "relu": ReLU}
# What their configuration may say, where only one thing is read.
READ = {"use_key_value_mlp": False, "rope_scaling": None}


@dataclasses.dataclass(frozen=True)
class Released(GroupedQuery):
    """Attention that reads its own keys rotated and hands them on as they were before."""

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
        source: tuple[KeysValues, Context] | None = None,
        memory: tuple[Array, Array] | None = None,
    ) -> tuple[Array, KeysValues | None, Report]:
        """Returns what a mixer does, and keys before rotation."""
        if source is not None:
            return super().apply(params, x, h, context, source, memory)
        made, _ = self.keys_values(params, *(memory or (x, h)), context)
        own = made.replace(key=self.rotated(made.key, context)), context
        y, _, report = super().apply(params, x, h, context, own)
        return y, made, report


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of this family asks of us."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    is_tied = bool(theirs.get("tie_word_embeddings")) or "embed_out.weight" in aliases(file)
    released, rotated = (config(theirs, is_tied, mixer) for mixer in (Released, GroupedQuery))
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)

    def arrays(aux: Aux, weights: Any) -> list[tuple[str, Any]]:
        return [("rotated_logits", _logits(weights, tokens, rotated))]

    return Case(released, functools.partial(params, released), tokens, targets, arrays=arrays)


@functools.partial(jax.jit, static_argnames="config")
def _logits(weights: Any, tokens: Any, config: Model) -> Array:
    out = model.apply(weights, tokens, config, mode="eval")
    return model.logits(weights, out.hidden, config)


def config(
    theirs: dict[str, Any], is_tied: bool, mixer: type[GroupedQuery] = GroupedQuery
) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      is_tied: whether the head is the embedding.
      mixer: the class of attention.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    for option, value in READ.items():
        if (got := theirs.get(option) or value) != value:
            raise ConfigError(f"mlkv.{option}: got {got!r}, and only {value!r} is read here")
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
        embed=embedding.Embedding(is_tied=is_tied),
    )


def _sources(layers: int, makers: int) -> tuple[int, ...]:
    """Returns the layer whose keys each layer reads; their code rounds a float down."""
    found = {0, *(int((i + 1) * (layers / makers)) for i in range(makers - 1))}
    return tuple(max(maker for maker in found if maker <= layer) for layer in range(layers))


def params(config: Model, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names."""
    owners = config.schedule.owners
    layer = lambda step: _layer(
        config.block, under(named, f"gpt_neox.layers.{step}."), bool(owners[step] == step)
    )
    embed = {"table": named["gpt_neox.embed_in.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["embed_out.weight"]
    return {
        "embed": embed,
        "prelude": {},
        "core": banks(config, layer),
        "coda": {},
        "depth": {},
        "inject": {},
        "final_norm": _norm(named, "gpt_neox.final_layer_norm"),
    }


def _norm(named: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}


def _layer(block: Block, named: Mapping[str, np.ndarray], makes_keys: bool) -> dict[str, Any]:
    width, mixer = block.embed_dim, block.mixer
    n, k, h = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    attention = {
        "out": named["attention.dense.weight"].T.reshape(n, h, width),
        "out_bias": named["attention.dense.bias"],
    }
    makers = {"key": k, "value": k} if makes_keys else {}
    for name, heads in {"query": n, **makers}.items():
        attention[name] = named[f"attention.{name}.weight"].T.reshape(width, heads, h)
        attention[f"{name}_bias"] = named[f"attention.{name}.bias"].reshape(heads, h)
    mlp = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}
    weights = {name: named[f"mlp.{theirs}.weight"].T for name, theirs in mlp.items()}
    biases = {f"{name}_bias": named[f"mlp.{theirs}.bias"] for name, theirs in mlp.items()}
    return {
        "norms": {
            "attention": _norm(named, "input_layernorm"),
            "mlp": _norm(named, "post_attention_layernorm"),
        },
        "attention": attention,
        "mlp": {**weights, **biases},
    }
