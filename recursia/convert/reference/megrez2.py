"""Experts shared by groups of layers, chosen one layer ahead: sii-research/InnoMegrez2.

Li et al. 2025 (arXiv 2507.17728). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The first layer has no experts, which no model here can say: its layers are put
together in this file, from ours.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from recursia.blocks.block import Block
from recursia.convert.reference import Layer, llama, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.feedforward.lagged_moe import LaggedMoE
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers.attention import Context
from recursia.layers.norm import rms_norm
from recursia.params import Params

REQUIRED = {
    "pre_gate": True,
    "n_group": 1,
    "topk_method": "noaux_tc",
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "tie_word_embeddings": False,
}
BIAS_OF = ("own", "bank")  # the selection bias of a layer, or of the first layer of its group


def case(file: Arrays) -> Layer:
    """Returns what the model computes, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    theirs = json.loads(str(file["config"]))
    trees.check_options("megrez2", theirs, REQUIRED)
    if (of := theirs.get("selection_bias_of", "own")) not in BIAS_OF:
        raise ConfigError(f"megrez2.selection_bias_of: got {of!r}, takes {' or '.join(BIAS_OF)}")
    block = llama.block(theirs, "megrez2", _experts(theirs))
    tokens = jnp.asarray(file["tokens"])
    size, layers = theirs["experts_shared_frequency"], range(theirs["num_hidden_layers"])
    groups = tuple((layer - 1) // size for layer in layers)  # that of the first layer is not used
    bias_of = tuple(layers) if of == "own" else tuple(1 + size * group for group in groups)
    objective = functools.partial(_loss, tokens=tokens, block=block, groups=groups, bias_of=bias_of)
    params = jax.tree.map(jnp.asarray, _weights(block, under(file, "param/"), theirs))
    (loss, logits), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    wanted = _weights(block, under(file, "grad/"), theirs)
    return Layer(
        outputs=[(logits, file["logits"])],
        losses=[(loss, file[name]) for name in ("cross_entropy", "total_loss") if name in file],
        gradients=[*zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True)],
    )


def _experts(theirs: Mapping[str, Any]) -> LaggedMoE:
    return LaggedMoE(
        num_experts=theirs["n_routed_experts"],
        top_k=theirs["num_experts_per_tok"],
        expert_dim=theirs["moe_intermediate_size"],
        shared_dim=theirs["n_shared_experts"] * theirs["moe_intermediate_size"],
        score=theirs["scoring_func"],
        is_renormalised=theirs["norm_topk_prob"],
        scale=float(theirs["routed_scaling_factor"]),
        has_selection_bias=True,
    )


def _loss(
    params: Params, tokens: Array, block: Block, groups: tuple[int, ...], bias_of: tuple[int, ...]
) -> tuple[Array, Array]:
    """Returns the cross-entropy and the logits.

    Args:
      params: of `_weights`.
      tokens: [B T].
      block: every layer but the first.
      groups: the group of each layer, whose experts it has.
      bias_of: the layer whose selection bias each layer has.
    """
    x = params["table"][tokens]
    carried = jnp.zeros_like(x)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    context = Context(places, is_row=True)
    for layer, own in enumerate(params["layers"]):
        norm = lambda x, name, own=own: rms_norm(x, own["norms"][name], block.norm_eps)
        h = norm(x, block.mixer.norm_name)
        x = x + block.mixer.apply(own, h, h, context)[0]
        h = norm(x, block.feedforward.norm_name)
        if "mlp" in own:
            dense = SwiGLU(own["mlp"]["up"].shape[1])
            (y, _), carried = dense.apply(own, h, h, context), h
        else:
            bias = params["layers"][bias_of[layer]]["selection_bias"]
            experts = params["groups"][groups[layer]]
            weights = {**own, "experts": experts, "selection_bias": bias}
            y, carried, _ = block.feedforward.step(weights, h, h, carried, context)
        x = x + y
    logits = rms_norm(x, params["norm"], block.norm_eps) @ params["head"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return nats.mean(), logits


def _weights(block: Block, named: Arrays, theirs: Mapping[str, Any]) -> Params:
    """Returns parameters by layer, those of experts by group."""
    names = {name: f"{name}_proj" for name in ("gate", "up", "down")}
    matrix = lambda name: named[f"{name}.weight"].T

    def experts(first: int) -> Params:
        prefix, count = f"model.layers.{first}.mlp.experts", range(theirs["n_routed_experts"])
        bank = lambda name: np.stack([matrix(f"{prefix}.{e}.{name}") for e in count])
        return {ours: bank(name) for ours, name in names.items()}

    def layer(number: int) -> Params:
        prefix = f"model.layers.{number}"
        both = {
            "norms": llama.norms(block, named, prefix),
            "attention": llama.attention(block, named, f"{prefix}.self_attn"),
        }
        if number == 0:
            return {**both, "mlp": llama.mlp(named, f"{prefix}.mlp")}
        shared = f"{prefix}.mlp.shared_experts"
        return {
            **both,
            "router": matrix(f"{prefix}.mlp.gate"),
            "selection_bias": named[f"{prefix}.mlp.gate.e_score_correction_bias"],
            "shared_experts": {ours: matrix(f"{shared}.{name}") for ours, name in names.items()},
        }

    layers, size = theirs["num_hidden_layers"], theirs["experts_shared_frequency"]
    return {
        "table": named["model.embed_tokens.weight"],
        "layers": [layer(number) for number in range(layers)],
        "groups": [experts(first) for first in range(1, layers, size)],
        "norm": named["model.norm.weight"],
        "head": named["lm_head.weight"],
    }
