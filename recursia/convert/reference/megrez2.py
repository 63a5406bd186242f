"""Experts shared by groups of layers, chosen one layer ahead: sii-research/InnoMegrez2.

Li et al. 2025 (arXiv 2507.17728). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The first layer has no experts, which no model here can say: its layers are put
together in this file, from ours.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from recursia.convert.reference import Layer, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.feedforward.feedforward import FeedForward
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
}
BIAS_OF = ("own", "bank")  # the selection bias of a layer, or of the first layer of its group
Named = dict[str, Array]


def case(file: Arrays) -> Layer:
    """Returns what the model computes, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    theirs = json.loads(str(file["config"]))
    trees.check_options("megrez2", theirs, REQUIRED)
    if (of := theirs.get("selection_bias_of", "own")) not in BIAS_OF:
        raise ConfigError(f"megrez2.selection_bias_of: got {of!r}, takes {' or '.join(BIAS_OF)}")
    named = {k.removeprefix("param/"): jnp.asarray(v) for k, v in file.items() if "param/" in k}
    graded = jax.jit(jax.value_and_grad(_losses(theirs, jnp.asarray(file["tokens"])), has_aux=True))
    (loss, logits), grads = graded(named)
    return Layer(
        outputs=[(logits, file["logits"])],
        losses=[(loss, file[name]) for name in ("cross_entropy", "total_loss") if name in file],
        gradients=[(grads[k], file[f"grad/{k}"]) for k in named if f"grad/{k}" in file],
    )


def _losses(theirs: Mapping[str, Any], tokens: Array) -> Any:
    """Returns the function from parameters to the loss and the logits."""
    experts = LaggedMoE(
        num_experts=theirs["n_routed_experts"],
        top_k=theirs["num_experts_per_tok"],
        expert_dim=theirs["moe_intermediate_size"],
        shared_dim=theirs["n_shared_experts"] * theirs["moe_intermediate_size"],
        score=theirs["scoring_func"],
        is_renormalised=theirs["norm_topk_prob"],
        scale=float(theirs["routed_scaling_factor"]),
        has_selection_bias=True,
    )
    block, eps = llama.block(theirs, "megrez2"), theirs["rms_norm_eps"]
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    context = Context(places, is_row=True)

    def run(named: Named) -> tuple[Array, Array]:
        x = named["model.embed_tokens.weight"][tokens]
        carried = jnp.zeros_like(x)
        for layer in range(theirs["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            norm = lambda x, name, prefix=prefix: rms_norm(x, named[f"{prefix}.{name}.weight"], eps)
            h = norm(x, "input_layernorm")
            attention = {"attention": llama.attention(block, named, f"{prefix}.self_attn")}
            x = x + block.mixer.apply(attention, h, h, context)[0]
            h = norm(x, "post_attention_layernorm")
            if layer:
                weights = _weights(named, theirs, layer)
                y, carried, _ = experts.step(weights, h, h, carried, context)
            else:
                dense: FeedForward = SwiGLU(theirs["intermediate_size"])
                mlp = {"mlp": llama.mlp(named, f"{prefix}.mlp")}
                (y, _), carried = dense.apply(mlp, h, h, context), h
            x = x + y
        h = rms_norm(x, named["model.norm.weight"], eps)
        head = "model.embed_tokens" if theirs["tie_word_embeddings"] else "lm_head"
        logits = h @ named[f"{head}.weight"].T
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return nats.mean(), logits

    return run


def _weights(named: Named, theirs: Mapping[str, Any], layer: int) -> Params:
    """Returns a layer's parameters by slot, experts those of the first layer of its group."""
    size = theirs["experts_shared_frequency"]
    first = f"model.layers.{1 + (layer - 1) // size * size}.mlp"
    own = f"model.layers.{layer}.mlp"
    names = {name: f"{name}_proj" for name in ("gate", "up", "down")}
    count = range(theirs["n_routed_experts"])
    bank = lambda name: jnp.stack([named[f"{first}.experts.{e}.{name}.weight"].T for e in count])
    shared = lambda name: named[f"{own}.shared_experts.{name}.weight"].T
    bias_of = own if theirs.get("selection_bias_of", "own") == "own" else first
    return {
        "experts": {ours: bank(name) for ours, name in names.items()},
        "router": named[f"{own}.gate.weight"].T,
        "selection_bias": named[f"{bias_of}.gate.e_score_correction_bias"],
        "shared_experts": {ours: shared(name) for ours, name in names.items()},
    }
