"""Experts shared by groups of layers, chosen one layer ahead: sii-research/InnoMegrez2.

Li et al. 2025 (arXiv 2507.17728). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The first layer, which has no experts, is a prelude.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from recursia.architecture import Model
from recursia.convert.reference import Case, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.lagged_moe import LaggedMoE
from recursia.feedforward.swiglu import SwiGLU
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
_NAMES = {name: f"{name}_proj" for name in ("gate", "up", "down")}


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    ours, tokens = config(json.loads(str(file["config"]))), np.asarray(file["tokens"])
    return Case(ours, functools.partial(params, ours), tokens, trees.next_tokens(tokens))


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("megrez2", theirs, REQUIRED)
    if (of := theirs.get("selection_bias_of", "own")) not in BIAS_OF:
        raise ConfigError(f"megrez2.selection_bias_of: got {of!r}, takes {' or '.join(BIAS_OF)}")
    experts = LaggedMoE(
        num_experts=theirs["n_routed_experts"],
        top_k=theirs["num_experts_per_tok"],
        expert_dim=theirs["moe_intermediate_size"],
        shared_dim=theirs["n_shared_experts"] * theirs["moe_intermediate_size"],
        score=theirs["scoring_func"],
        is_renormalised=theirs["norm_topk_prob"],
        scale=float(theirs["routed_scaling_factor"]),
        has_selection_bias=True,
        balance_loss_weight=0.0,
    )
    groups = f"block/{theirs['experts_shared_frequency']}"
    return Model(
        num_layers=theirs["num_hidden_layers"],
        vocab_size=theirs["vocab_size"],
        block=llama.block(theirs, "megrez2", experts),
        depth=Fixed(1),
        prelude=1,
        end_feedforward=SwiGLU(theirs["intermediate_size"]),
        varies=(("experts", groups), *((("selection_bias", groups),) if of == "bank" else ())),
        embed=Table(is_tied=False),
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    count = range(trees.narrow(config.block.feedforward, LaggedMoE).num_experts)
    matrix = lambda name: named[f"{name}.weight"].T

    def layer(step: int) -> Params:
        prefix = f"model.layers.{1 + step}"
        bank = lambda name: [matrix(f"{prefix}.mlp.experts.{e}.{name}") for e in count]
        shared = lambda name: matrix(f"{prefix}.mlp.shared_experts.{name}")
        return {
            "norms": llama.norms(config.block, named, prefix),
            "attention": llama.attention(config.block, named, f"{prefix}.self_attn"),
            "experts": {ours: np.stack(bank(name)) for ours, name in _NAMES.items()},
            "router": matrix(f"{prefix}.mlp.gate"),
            "selection_bias": named[f"{prefix}.mlp.gate.e_score_correction_bias"],
            "shared_experts": {ours: shared(name) for ours, name in _NAMES.items()},
        }

    first = llama.weights(config.end_block, named, "model.layers.0")
    sections = {"prelude": trees.stack([first]), "core": trees.banks(config, layer)}
    return llama.complete(config, named, sections)
