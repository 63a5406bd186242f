"""Chains of experts: ZihanWang314/CoE, on DeepSeek-V2's layers.

Wang et al. 2025 (arXiv 2506.18945). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The feed-forward and the arrangements of the residual stream are ours; attention with
compressed keys and values, which no block here has, is done in this file.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from recursia.blocks.pre_norm import PreNorm
from recursia.blocks.replacing_norm import ReplacingNorm
from recursia.convert.reference import Layer, trees
from recursia.convert.reference.trees import Arrays
from recursia.feedforward.chain_moe import ChainMoE
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.norm import rms_norm
from recursia.layers.rotary import rotate
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

REQUIRED = {
    "q_lora_rank": None,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "seq_aux": True,
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "inner_residual": True,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
}
COMPRESSED_EPS = 1e-6  # of the norm of compressed keys and values, whatever the others have
Named = dict[str, Array]


class Settings(dict[str, Any]):
    """Their hyper-parameters, hashable by identity."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


def case(file: Arrays) -> Layer:
    """Returns what the model computes, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    theirs = Settings(json.loads(str(file["config"])))
    trees.check_options("coe", theirs, REQUIRED)
    named = {k.removeprefix("param/"): jnp.asarray(v) for k, v in file.items() if "param/" in k}
    (_, made), grads = _graded(named, jnp.asarray(file["tokens"]), theirs)
    pairs = [(ours, file[name]) for name, ours in made.items() if name in file]
    return Layer(
        outputs=[pair for pair in pairs if jnp.ndim(pair[0])],
        losses=[pair for pair in pairs if not jnp.ndim(pair[0])],
        gradients=[(grads[k], file[f"grad/{k}"]) for k in named if f"grad/{k}" in file],
    )


@functools.partial(jax.jit, static_argnames="theirs")
@functools.partial(jax.value_and_grad, has_aux=True)
def _graded(named: Named, tokens: Array, theirs: Settings) -> tuple[Array, Named]:
    """Returns the total loss, and logits and losses by their names in the file."""
    x, reports = named["model.embed_tokens.weight"][tokens], []
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    block = _block(theirs)
    for layer in range(theirs["num_hidden_layers"]):
        x, report = _layer(named, x, Context(places, is_row=True), theirs, layer, block)
        reports.append(report)
    h = rms_norm(x, named["model.norm.weight"], theirs["rms_norm_eps"])
    head = "model.embed_tokens" if theirs["tie_word_embeddings"] else "lm_head"
    logits = h @ named[f"{head}.weight"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
    auxiliary = block.feedforward.losses(stacked)[0]["expert_balance"]
    total = nats + auxiliary
    found = {"logits": logits, "train_logits": logits, "cross_entropy": nats}
    return total, {**found, "aux_loss": auxiliary, "total_loss": total}


def _block(theirs: Mapping[str, Any]) -> PreNorm:
    """Returns the arrangement of a layer with its experts; its mixer is not used."""
    experts = ChainMoE(
        num_experts=theirs["n_routed_experts"],
        top_k=theirs["num_experts_per_tok"],
        expert_dim=theirs["moe_intermediate_size"],
        shared_dim=(theirs["n_shared_experts"] or 0) * theirs["moe_intermediate_size"],
        is_renormalised=theirs["norm_topk_prob"],
        scale=1.0 if theirs["norm_topk_prob"] else float(theirs["routed_scaling_factor"]),
        balance_loss_weight=float(theirs["aux_loss_alpha"]),
        balance_over="sequence",
        num_passes=theirs["inner_iter"],
        has_own_routers=theirs["use_igate"],
        writes="result",
    )
    cls = PreNorm if theirs["outer_residual"] else ReplacingNorm
    return cls(theirs["hidden_size"], GroupedQuery(1, 1, 2), experts)


def _layer(
    named: Named, x: Array, context: Context, theirs: Settings, layer: int, block: PreNorm
) -> tuple[Array, Params]:
    """Returns the stream after a layer, and the report of its experts."""
    prefix, eps = f"model.layers.{layer}", theirs["rms_norm_eps"]
    norm = lambda x, name: rms_norm(x, named[f"{prefix}.{name}.weight"], eps)
    x = x + _attention(named, norm(x, "input_layernorm"), context, theirs, f"{prefix}.self_attn")
    h = norm(x, "post_attention_layernorm")
    y, report = block.feedforward.apply(_experts(named, f"{prefix}.mlp", theirs), h, h, context)
    return block.after(x, y, block.feedforward.norm_name, norm), report


def _experts(named: Named, prefix: str, theirs: Settings) -> Params:
    matrix = lambda name: named[f"{prefix}.{name}.weight"].T
    names = {name: f"{name}_proj" for name in ("gate", "up", "down")}
    count = range(theirs["n_routed_experts"])
    bank = lambda name: jnp.stack([matrix(f"experts.{e}.{name}") for e in count])
    gates = [f"gate.{i}" for i in range(theirs["inner_iter"])] if theirs["use_igate"] else ["gate"]
    return {
        "experts": {ours: bank(name) for ours, name in names.items()},
        "router": jnp.stack([matrix(name) for name in gates], axis=1),
        "shared_experts": {ours: matrix(f"shared_experts.{name}") for ours, name in names.items()},
    }


def _attention(named: Named, h: Array, context: Context, theirs: Settings, prefix: str) -> Array:
    """Returns attention whose keys and values are made of one compressed vector of each token.

    A rotated part of the keys is common to all heads.
    """
    heads, plain, rotated, wide = (
        theirs[name]
        for name in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    project = lambda x, name: x @ named[f"{prefix}.{name}.weight"].T
    by_head = lambda x: x.reshape(*x.shape[:2], heads, -1)
    turn = lambda x: rotate(x, context.positions, float(theirs["rope_theta"]), "interleaved")
    query = by_head(project(h, "q_proj"))
    query = jnp.concatenate([query[..., :plain], turn(query[..., plain:])], axis=-1)
    compressed, common = jnp.split(
        project(h, "kv_a_proj_with_mqa"), [theirs["kv_lora_rank"]], axis=-1
    )
    scale = named[f"{prefix}.kv_a_layernorm.weight"]
    both = by_head(project(rms_norm(compressed, scale, COMPRESSED_EPS), "kv_b_proj"))
    common = jnp.broadcast_to(turn(common[:, :, None]), (*both.shape[:3], rotated))
    key = jnp.concatenate([both[..., :plain], common], axis=-1)
    value = jnp.pad(both[..., plain:], [(0, 0)] * 3 + [(0, max(plain + rotated - wide, 0))])
    mixed = attend(query, KeysValues(key, value), context, context)[..., :wide]
    return project(mixed.reshape(*h.shape[:2], -1), "o_proj")
