"""Configurations and parameters of mixtures of experts with a recurrent router: qiuzh20/RMoE.

Qiu et al. 2024 (arXiv 2408.06793), on transformers' Mixtral. Names are those of its `state_dict`; a
linear weight is `[out, in]`. The released loss takes the tokens of all layers together, and so does
the feed-forward here.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from recursia.architecture import Model
from recursia.convert.reference import Case, Compared, llama, trees
from recursia.convert.reference.trees import Arrays
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.feedforward.recurrent_moe import RecurrentMoE
from recursia.params import Params

REQUIRED = {"moe_router_type": "gru", "add_moe_share_expert": False, "add_moe_bias": False}
GATES = ("r", "z", "n")


def case(file: Arrays) -> Case:
    """Returns the case of a file of this family."""
    theirs, tokens = json.loads(str(file["config"])), np.asarray(file["tokens"])
    ours, weight = config(theirs), float(theirs["router_aux_loss_coef"])

    def losses(aux: Aux) -> Compared:
        return [("aux_loss", aux.losses["expert_balance"] / weight)] if weight else []

    read = functools.partial(params, ours)
    return Case(ours, read, tokens, trees.next_tokens(tokens), losses=losses)


def config(theirs: Mapping[str, Any]) -> Model:
    """Returns our configuration of their model.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("rmoe", theirs, REQUIRED)
    layers = theirs["num_hidden_layers"]
    experts = RecurrentMoE(
        num_experts=theirs["num_local_experts"],
        top_k=theirs["num_experts_per_tok"],
        expert_dim=theirs.get("moe_expert_intermediate_size") or theirs["intermediate_size"],
        router_dim=theirs["moe_router_rnn_hidden_size"],
        balance_loss_weight=float(theirs["router_aux_loss_coef"]),
    )
    return Model(
        num_layers=layers,
        vocab_size=theirs["vocab_size"],
        block=llama.block(theirs, "rmoe", experts),
        depth=Fixed(1),
        varies=(("router_cell", "one"),),
        embed=Table(is_tied=bool(theirs.get("tie_word_embeddings"))),
    )


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""
    feedforward = trees.narrow(config.block.feedforward, RecurrentMoE)
    gates = lambda name: jnp.stack([named[f"model.rnn_router.{name}{gate}"] for gate in GATES])
    cell = {
        "input": gates("weight_i").transpose(2, 0, 1),
        "state": gates("weight_h").transpose(2, 0, 1),
        "input_bias": gates("bias_i"),
        "state_bias": gates("bias_h"),
    }

    def layer(step: int) -> Params:
        prefix = f"model.layers.{step}"
        mixture = f"{prefix}.block_sparse_moe"
        names = {"gate": "w1", "up": "w3", "down": "w2"}
        weight = lambda e, name: named[f"{mixture}.experts.{e}.{name}.weight"].T
        bank = lambda name: np.stack([weight(e, name) for e in range(feedforward.num_experts)])
        return {
            "norms": llama.norms(config.block, named, prefix),
            "attention": llama.attention(config.block, named, f"{prefix}.self_attn"),
            "experts": {ours: bank(name) for ours, name in names.items()},
            "router": {"into": named[f"{mixture}.weight1"].T, "out": named[f"{mixture}.weight2"].T},
            "router_cell": cell,
        }

    return llama.complete(config, named, {"core": trees.banks(config, layer)})
