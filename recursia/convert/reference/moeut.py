"""Configurations and parameters of MoEUT, as ours: RobertCsordas/moeut.

Csordás et al. 2024 (arXiv 2405.16039). A stored layer is one block of the core, applied once in
every repeat. The rows of a router are experts, in attention head by head; expert banks are
`[expert, in, out]` as here, and a linear weight is `[out, in]`.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.peri_norm import PeriNorm
from recursia.convert.reference import Case, Compared, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth import fixed
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.feedforward.sigma_moe import SigmaMoE
from recursia.mixers.switch_head import SwitchHead
from recursia.params import Params

# The defaults of their constructors; widths have none.
DEFAULTS = {
    "ff_k": 8,
    "ff_expert_size": 128,
    "att_k": 2,
    "entropy_reg": 0.01,
    "att_entropy_reg": 0.001,
}
# Options for which only this value is read.
REQUIRED = {"dropout": 0, "ff_expert_dropout": 0, "att_expert_dropout": 0}


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family; its last token is only a target."""
    ours = config(json.loads(str(file["config"])))
    tokens = np.asarray(file["tokens"])

    def losses(aux: Aux) -> Compared:
        return [("reg_loss", jnp.asarray(sum(aux.losses.values())))]

    convert = functools.partial(params, ours)
    return Case(ours, convert, tokens[:, :-1], tokens[:, 1:], losses=losses)


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("moeut", theirs, REQUIRED)
    width, heads = theirs["d_model"], theirs["n_heads"]
    group = theirs.get("group_size", 2)
    options = {**DEFAULTS, **theirs}
    mixer = SwitchHead(
        num_heads=heads,
        head_dim=theirs.get("d_head") or width // heads,
        num_attention_experts=theirs["att_n_experts"],
        attention_top_k=options["att_k"],
        attention_entropy_weight=options["att_entropy_reg"],
    )
    feedforward = SigmaMoE(
        num_experts=theirs["ff_n_experts"],
        top_k=options["ff_k"],
        expert_dim=options["ff_expert_size"],
        entropy_weight=options["entropy_reg"],
    )
    block = PeriNorm(width, mixer, feedforward, norm="layer")
    repeats = theirs["n_layers"] // group  # their code drops layers that do not divide
    return Model(
        num_layers=group * repeats,
        sharing="cycle",
        vocab_size=theirs["n_tokens"],
        block=block,
        depth=fixed.Fixed(repeats),
        embed=Table(is_tied=False, has_head_bias=True),
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    layers = (
        _layer(config.block, under(named, f"transformer.layers.{i}."))
        for i in range(config.schedule.num_blocks)
    )
    embed = trees.embedding(config, named, "embedding", "lm_head")
    return trees.complete(
        {
            "embed": {**embed, "bias": named["lm_head.bias"]},
            "core": trees.stack(layers),
            "final_norm": trees.layer_norm(named, "out_norm"),
        }
    )


def _layer(block: Block, named: Arrays) -> Params:
    mixer = trees.narrow(block.mixer, SwitchHead)
    heads = lambda name: trees.to_heads(named[f"attention.{name}"], mixer.num_heads)
    if mixer.has_attention_experts:
        projections = {"value": named["attention.v"], "out": named["attention.o"]}
        router = {"value": heads("sel_v"), "out": heads("sel_o")}
    else:
        out = trees.from_heads(named["attention.o"], mixer.num_heads)
        projections = {"value": heads("v"), "out": out}
        router = {"out": named["attention.sel_o"].T}
    return {
        "norms": {
            "attention": trees.layer_norm(named, "ln1"),
            "experts": trees.layer_norm(named, "ln2"),
        },
        "attention": {"query": heads("q.weight"), "key": heads("k.weight")},
        "attention_experts": projections,
        "attention_router": router,
        "experts": {"up": named["ffn.keys"], "down": named["ffn.values"]},
        "router": named["ffn.expert_sel"].T,
    }
