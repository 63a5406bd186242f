"""MoEUT: RobertCsordas/moeut. A stored layer is one block of the core, walked by every repeat.

A selection's rows are experts, those of attention heads one after the other; expert banks are
`[expert, in, out]` as here, and a linear weight is `[out, in]`.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.peri_norm import PeriNorm
from recursia.convert.reference import Case, under
from recursia.depth import fixed
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.feedforward.sigma_moe import SigmaMoE
from recursia.layers import embedding
from recursia.mixers.switch_head import SwitchHead

# What their constructors take where a file does not say; widths have no default.
DEFAULTS = {
    "ff_k": 8,
    "ff_expert_size": 128,
    "att_k": 2,
    "entropy_reg": 0.01,
    "att_entropy_reg": 0.001,
}
DROPPED = ("dropout", "ff_expert_dropout", "att_expert_dropout")


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of this family asks of us: its tokens hold one more than is read."""
    ours = config(json.loads(str(file["config"])))
    tokens = np.asarray(file["tokens"])

    def losses(aux: Aux) -> list[tuple[str, Any]]:
        return [("reg_loss", sum(aux.losses.values()))]

    convert = functools.partial(params, ours)
    return Case(ours, convert, tokens[:, :-1], tokens[:, 1:], losses=losses)


def config(theirs: dict[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    for name in DROPPED:
        if theirs.get(name):
            raise ConfigError(f"reference: {name} {theirs[name]} is not read here; 0 is")
    width, heads = theirs["d_model"], theirs["n_heads"]
    group = theirs.get("group_size", 2)
    given = {name: theirs.get(name, default) for name, default in DEFAULTS.items()}
    mixer = SwitchHead(
        num_heads=heads,
        head_dim=theirs.get("d_head") or width // heads,
        num_attention_experts=theirs["att_n_experts"],
        attention_top_k=given["att_k"],
        attention_entropy_weight=given["att_entropy_reg"],
    )
    feedforward = SigmaMoE(
        num_experts=theirs["ff_n_experts"],
        top_k=given["ff_k"],
        expert_dim=given["ff_expert_size"],
        entropy_weight=given["entropy_reg"],
    )
    block = PeriNorm(width, mixer, feedforward, norm="layer")
    repeats = theirs["n_layers"] // group  # layers that do not divide are left out
    return Model(
        num_layers=group * repeats,
        sharing="cycle",
        vocab_size=theirs["n_tokens"],
        block=block,
        depth=fixed.Fixed(repeats),
        embed=embedding.Embedding(is_tied=False, has_head_bias=True),
    )


def params(config: Model, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names."""
    layers = [
        _layer(config.block, under(named, f"transformer.layers.{i}."))
        for i in range(config.schedule.num_blocks)
    ]
    return {
        "embed": {
            "table": named["embedding.weight"],
            "head": named["lm_head.weight"],
            "bias": named["lm_head.bias"],
        },
        "prelude": {},
        "core": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "coda": {},
        "depth": {},
        "inject": {},
        "final_norm": _norm(named, "out_norm"),
    }


def _norm(named: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}


def _layer(block: Block, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    mixer = block.mixer
    d, n, h = block.embed_dim, mixer.num_heads, mixer.head_dim
    w = lambda name: named[f"attention.{name}"]
    heads = lambda matrix: matrix.T.reshape(d, n, h)
    if mixer.has_attention_experts:
        select = lambda matrix: matrix.T.reshape(d, n, mixer.num_attention_experts)
        projections = {"value": w("v"), "out": w("o")}
        router = {"value": select(w("sel_v")), "out": select(w("sel_o"))}
    else:
        projections = {"value": heads(w("v")), "out": w("o").T.reshape(n, h, d)}
        router = {"out": w("sel_o").T}
    return {
        "norms": {"attention": _norm(named, "ln1"), "experts": _norm(named, "ln2")},
        "attention": {"query": heads(w("q.weight")), "key": heads(w("k.weight"))},
        "attention_experts": projections,
        "attention_router": router,
        "experts": {"up": named["ffn.keys"], "down": named["ffn.values"]},
        "router": named["ffn.expert_sel"].T,
    }
