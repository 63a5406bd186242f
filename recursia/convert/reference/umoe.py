"""Configurations and parameters of one expert bank for attention and feed-forward: ysngki/UMoE.

Yang et al. 2025 (arXiv 2505.07260). Names are those of its `state_dict`. A linear weight is
`[out, in]`, but those of experts are views of the same memory by expert first, whatever shape the
layer has.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Case, Compared, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.feedforward.glu_moe import GluMoE
from recursia.mixers.pre_mixing import PreMixing
from recursia.params import Params

REQUIRED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "disable_share_expert_for_att": False,
    "ffn_separate_router": True,
    "gate_mlp": False,
    "hidden_act": "silu",
    "mla": False,
    "multi_share_expert": False,
    "no_act": False,
    "norm_after_mix": False,
    "premix_att_moe": True,
    "res_query_lora": True,
    "rope_scaling": None,
    "scoring_func": "softmax",
    "share_att_ffn_moe": True,
    "share_layer": False,
    "skip_shared_ffn": False,
    "swiglue_mlp": False,
    "topk_method": "greedy",
    "use_megatron_cutlass_group_gemm": False,  # its views of experts are transposed
    "use_te_group_linear": False,
}


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    ours = config(theirs)

    def losses(aux: Aux) -> Compared:
        return [("aux_loss", sum(aux.losses.values()))]  # pyright: ignore[reportReturnType]

    read = functools.partial(params, ours)
    return Case(ours, read, tokens, trees.next_tokens(tokens), losses=losses)


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    always_on = theirs["moe_intermediate_size"] * (theirs["n_shared_experts"] or 0)
    is_in_both = always_on and not theirs.get("disable_share_expert_for_ffn")
    own = {"seperate_share_expert_for_ffn": True} if is_in_both else {}
    trees.check_options("umoe", theirs, {**REQUIRED, **own})
    is_renormalised = bool(theirs.get("norm_topk_prob"))
    scale = 1.0 if is_renormalised else float(theirs["routed_scaling_factor"])
    weight, over = float(theirs["aux_loss_alpha"]), "sequence" if theirs["seq_aux"] else "batch"
    mixer = PreMixing(
        head_dim=theirs["qk_nope_head_dim"] + theirs["qk_rope_head_dim"],
        attention_top_k=theirs["num_experts_per_tok"],
        query_rank=theirs["q_lora_rank"],
        attention_shared_dim=always_on,
        attention_scale=scale,
        is_attention_renormalised=is_renormalised,
        attention_balance_weight=weight,
        attention_balance_over=over,
        rope_base=float(theirs["rope_theta"]),
        rope_layout="interleaved",
    )
    feedforward = GluMoE(
        num_experts=theirs["n_routed_experts"],
        top_k=theirs["ffn_num_experts_per_tok"],
        expert_dim=theirs["moe_intermediate_size"],
        shared_dim=always_on if is_in_both else 0,
        is_gated=False,
        is_renormalised=is_renormalised,
        scale=scale,
        balance_loss_weight=weight,
        balance_over=over,
    )
    return Model(
        num_layers=theirs["num_hidden_layers"],
        vocab_size=theirs["vocab_size"],
        block=PreNorm(
            theirs["hidden_size"], mixer, feedforward, norm_eps=float(theirs["rms_norm_eps"])
        ),
        depth=Fixed(1),
        embed=Table(is_tied=bool(theirs.get("tie_word_embeddings"))),
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    block, width = config.block, config.block.embed_dim
    mixer = trees.narrow(block.mixer, PreMixing)
    feedforward = trees.narrow(block.feedforward, GluMoE)
    names = {"query": "q_res_proj", "key": "k_proj", "shared_query": "shared_q_proj"}

    def layer(step: int) -> Params:
        own = f"model.layers.{step}.self_attn"
        experts, plain = f"{own}.vo_experts", lambda name: named[f"{own}.{name}.weight"].T

        def by_expert(name: str, outputs: int) -> np.ndarray:
            weight = named[f"{own}.{name}.weight"]
            return weight.reshape(feedforward.num_experts, outputs, -1).swapaxes(1, 2)

        def dense(name: str) -> Params:
            both = {"up": "gate_proj", "down": "down_proj"}
            return {ours: plain(f"vo_experts.{name}.{their}") for ours, their in both.items()}

        found = {
            "norms": llama.norms(block, named, f"model.layers.{step}"),
            "attention": {n: plain(t) for n, t in names.items() if f"{own}.{t}.weight" in named},
            "attention_router": named[f"{experts}.gate.weight"].T,
            "attention_queries": {
                "down": by_expert("q_a_proj", mixer.query_rank),
                "norm": named[f"{own}.q_a_layernorm.weight"],
                "up": by_expert("q_b_proj", mixer.head_dim),
            },
            "experts": {
                "up": by_expert("vo_experts.linear_1", feedforward.expert_dim),
                "down": by_expert("vo_experts.linear_2", width),
            },
            "router": named[f"{experts}.gate_ffn.weight"].T,
        }
        if mixer.attention_shared_dim:
            found["attention_shared"] = dense("shared_experts")
        if feedforward.shared_dim:
            found["shared_experts"] = dense("ffn_shared_experts")
        return found

    return llama.complete(config, named, {"core": trees.banks(config, layer)})
