"""Configurations, parameters and recipes of CompleteP and muP: EleutherAI/nanoGPT-mup.

Dey et al. 2025 (arXiv 2505.01618) in its branch "completep", whose configurations have fields of
depth, Yang et al. 2022 (arXiv 2203.03466) in "master", and experts in "moe", whose block adds their
output to the stream in the files, and not as released. Without targets the released model leaves
the multiplier of its logits out; here logits have it.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case, Compared, Recipe, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.embeddings.learned_positions import LearnedPositions
from recursia.errors import ConfigError
from recursia.feedforward.feedforward import FeedForward
from recursia.feedforward.gelu import GELU
from recursia.feedforward.softmax_moe import SoftmaxMoE
from recursia.layers import balance
from recursia.layers.initial import Init
from recursia.mixers.grouped_query import GroupedQuery
from recursia.optimizers.adamw import AdamW
from recursia.parameterisations.completep import CompleteP
from recursia.parameterisations.mup import MuP
from recursia.parameterisations.parameterisation import Parameterisation
from recursia.parameterisations.standard import Standard
from recursia.params import Params

# Options of their configuration for which only this value is read.
REQUIRED = {"dropout": 0.0, "mup_disable_hidden_lr_scaling": False}
ORDERS = {"softmax_topk": False, "topk_softmax": True}  # whether gates sum to 1


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    ours = config(theirs)
    return Case(
        ours,
        functools.partial(params, ours),
        tokens[:, :-1],
        tokens[:, 1:],
        # Without rotation it adds alike to all of a query's scores.
        vanishing=frozenset({"key_bias"}),
        losses=functools.partial(_losses, ours),
        recipe=recipe(theirs, ours),
    )


def _losses(config: Model, aux: Aux) -> Compared:
    """Returns what each layer's router would be trained with; the share of choices sums to k."""
    experts, found = config.block.feedforward, []
    if not isinstance(experts, SoftmaxMoE):
        return found
    for layer in range(config.num_layers):
        used = jax.tree.map(lambda leaf: leaf[0, layer], aux.report["router"])  # noqa: B023
        by_token, overall = balance.information(used)
        share = experts.top_k / experts.num_experts
        found += [
            (f"load_balancing_loss/{layer}", share * balance.switch_loss(used)),
            (f"router_z_loss/{layer}", balance.z_loss(used)),
            (f"entropy_reg/{layer}", -overall),
            (f"entropy_reg_per_token/{layer}", -by_token),
        ]
    return found


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("nanogpt_mup", theirs, REQUIRED)
    is_mup, width, heads = theirs["mup_enabled"], theirs["n_embd"], theirs["n_head"]
    is_scored_by_width = is_mup and not theirs["mup_disable_attention_scaling"]
    # The branch of CompleteP does not divide what writes to the stream by the root of depth.
    init = Init(std=theirs["init_std"], by_depth=not (is_mup and "depth_alpha_exp" in theirs))
    has_bias = theirs["bias"]
    mixer = GroupedQuery(
        heads,
        heads,
        width // heads,
        rope_base=None,
        has_bias=has_bias,
        has_value_bias=has_bias,
        score_scale=heads / width if is_scored_by_width else None,
        init=init,
    )
    return Model(
        theirs["n_layer"],
        PreNorm(
            width,
            mixer,
            _feedforward(theirs, init),
            norm="layer" if has_bias else "unbiased_layer",
        ),
        Fixed(1),
        parameterisation=_parameterisation(theirs),
        embed=LearnedPositions(
            num_positions=theirs["block_size"],
            init_std=theirs["init_std"],
            scale=theirs["mup_input_alpha"] if is_mup else 1.0,
            logit_scale=theirs["mup_output_alpha"] if is_mup else 1.0,
        ),
        vocab_size=theirs["vocab_size"],
    )


def _feedforward(theirs: Mapping[str, Any], init: Init) -> FeedForward:
    hidden = 4 * theirs["n_embd"]
    if not theirs.get("use_moe"):
        return GELU(hidden, theirs["bias"], init)
    if (order := theirs["moe_softmax_order"]) not in ORDERS:
        known = ", ".join(ORDERS)
        raise ConfigError(
            f"nanogpt_mup.moe_softmax_order: got {order!r}, and only {known} are read here"
        )
    experts = theirs["moe_num_experts"], theirs["moe_num_experts_per_tok"], hidden
    how: Any = {"has_bias": theirs["bias"], "is_renormalised": ORDERS[order], "init": init}
    return SoftmaxMoE(*experts, **how, balance_loss_weight=0.0)


def _parameterisation(theirs: Mapping[str, Any]) -> Parameterisation:
    has_depth = theirs.get("depth_alpha_enabled", False)
    if not theirs["mup_enabled"]:
        trees.check_options("nanogpt_mup", theirs, {"depth_alpha_enabled": False})
        return Standard()
    base_width = _base(theirs, "n_embd", "mup_width_multiplier")
    if not has_depth:
        return MuP(base_width, scales_routers=False)
    base_layers = _base(theirs, "n_layer", "depth_multiplier")
    return CompleteP(base_width, base_layers, theirs["depth_alpha_exp"], True)


def _base(theirs: Mapping[str, Any], size: str, multiplier: str) -> int:
    """Returns the size of the base model, of which their configuration has the ratio."""
    base = theirs[size] / theirs[multiplier]
    if base != round(base):
        raise ConfigError(
            f"nanogpt_mup.{multiplier}: {theirs[multiplier]} does not divide {size} "
            f"{theirs[size]}, and here a base has a whole size"
        )
    return round(base)


def recipe(theirs: Mapping[str, Any], ours: Model) -> Recipe:
    """Returns how they train it, and their multipliers as we have them."""
    mixer, scales = trees.narrow(ours.block.mixer, GroupedQuery), ours.parameterisation
    return Recipe(
        AdamW(
            theirs["learning_rate"],
            theirs["beta1"],
            theirs["beta2"],
            theirs["adam_eps"],
            theirs["weight_decay"],
            theirs["grad_clip"],
        ),
        {
            "embedding": ours.embed.scale,
            "attention_logits": mixer.score_scale or mixer.head_dim**-0.5,
            "residual": scales.branch(ours.size),
            "output": ours.embed.logit_scale * scales.logits(ours.size),
        },
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    inner = under(named, "transformer.")
    return trees.complete(
        {
            "embed": {"table": inner["wte.weight"], "positions": inner["wpe.weight"]},
            "core": trees.banks(
                config, lambda step: _layer(config.block, under(inner, f"h.{step}."))
            ),
            "final_norm": _norm(inner, "ln_f"),
        }
    )


def _layer(block: Block, named: Arrays) -> Params:
    mixer = trees.narrow(block.mixer, GroupedQuery)
    attention: Params = {"out": trees.from_heads(named["attn.c_proj.weight"], mixer.num_heads)}
    names = ("query", "key", "value")
    for name, weight in zip(names, np.split(named["attn.c_attn.weight"], 3), strict=True):
        attention[name] = trees.to_heads(weight, mixer.num_heads)
    if mixer.has_bias:
        for name, bias in zip(names, np.split(named["attn.c_attn.bias"], 3), strict=True):
            attention[f"{name}_bias"] = bias.reshape(mixer.num_heads, -1)
        attention["out_bias"] = named["attn.c_proj.bias"]
    experts = block.feedforward
    norms = {"attention": _norm(named, "ln_1"), experts.norm_name: _norm(named, "ln_2")}
    found = {"norms": norms, "attention": attention}
    if not isinstance(experts, SoftmaxMoE):
        return {**found, "mlp": _mlp(under(named, "mlp."))}
    each = [_mlp(under(named, f"ff.experts.{e}.")) for e in range(experts.num_experts)]
    return {**found, "experts": trees.stack(each), "router": named["ff.router.weight"].T}


def _mlp(named: Arrays) -> Params:
    names = {"up": "c_fc", "down": "c_proj"}
    weights = {ours: named[f"{name}.weight"].T for ours, name in names.items()}
    biases = {o: named[f"{n}.bias"] for o, n in names.items() if f"{n}.bias" in named}
    return {**weights, **{f"{ours}_bias": bias for ours, bias in biases.items()}}


def _norm(named: Arrays, name: str) -> Params:
    has_bias = f"{name}.bias" in named
    return trees.layer_norm(named, name) if has_bias else {"scale": named[f"{name}.weight"]}
