"""Configurations and parameters of Recursive Transformers and Mixture-of-Recursions, as ours.

raymin0223/mixture_of_recursions (Bae et al. 2024, arXiv 2410.20672, and 2025, arXiv 2507.10524).
Names are those of its `state_dict`; a linear weight is `[out, in]`. With expert choice, a layer of
the list is one recursion and holds its blocks; with token choice, one layer holds all recursions;
without routing, a layer is one step.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recursia import kv, model
from recursia.architecture import Model
from recursia.convert.reference import Case, Compared, aliases, llama, mor_routing, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth import expert_choice, fixed, token_choice
from recursia.depth.policy import Aux
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.params import Params

EXPERT = "model.layers.{}.block.{}"
TOKEN = "model.layers.{}.block_list.{}.{}"
STEP = "model.layers.{}"
ROUTER = "model.layers.{}.{}.router{}.weight"
BIAS = "model.layers.{}.router_bias"
# One array of each slot: the slot is shared if this array is.
SLOTS = {
    "norms": "input_layernorm",
    "attention": "self_attn.q_proj",
    "mlp": "mlp.gate_proj",
}


def case(file: Arrays) -> Case:
    """Returns the case of a file of these families."""
    alias = aliases(file)
    owner = {name: alias.get(name, name) for name in under(file, "param/")}
    ours = config(json.loads(str(file["config"])), owner)
    tokens = np.asarray(file["tokens"])
    depth = ours.depth
    has_router_loss = isinstance(depth, expert_choice.ExpertChoice) and depth.aux_loss_weight > 0
    balancing = depth.balancing if isinstance(depth, token_choice.TokenChoice) else "none"

    # A loss that their model is trained without is 0 in a file, whatever its value would be.
    def losses(aux: Aux) -> Compared:
        if has_router_loss:
            return [("router_loss", aux.metrics["router_cross_entropy"].sum())]
        is_trained = balancing == "loss"
        return [("balancing_loss", aux.metrics["router_balance"])] if is_trained else []

    def arrays(aux: Aux, _: Params) -> Compared:
        is_counted = balancing != "none"
        return [("balancing_ratio", aux.metrics["depth_share"])] if is_counted else []

    kept = lambda aux: [(r, aux.depth_used > r) for r in range(ours.schedule.num_recursions)]
    return Case(
        ours,
        functools.partial(params, ours),
        tokens,
        trees.next_tokens(tokens),
        losses=losses,
        arrays=arrays,
        kept=kept,
    )


def config(theirs: Mapping[str, Any], owner: Mapping[str, str]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters: `llama`, `recursive`, `mor`, `kv_sharing`.
      owner: for every parameter name of their model, the name that owns the tensor. The names give
        the effective depth, for their code drops layers that do not divide, and the owners give
        the slots that recursions share.

    Raises:
      ConfigError: for an option that has no counterpart here.
      ValueError: for options that cannot be combined here.
    """
    shape, recursive = theirs["llama"], theirs.get("recursive") or {}
    recursions, how = recursive.get("num_recursion") or 1, recursive.get("sharing") or "none"
    is_routed = bool(theirs.get("mor"))
    depth = mor_routing.policy(theirs, recursions) if is_routed else fixed.Fixed(recursions)
    keys = kv.Plan("first_recursion" if _is_sharing_keys(theirs, recursive) else "own")
    ours = Model(
        num_layers=_num_layers(owner, recursions),
        sharing=how,
        vocab_size=shape["vocab_size"],
        block=llama.block(shape, "llama"),
        depth=depth,
        kv=keys,
        embed=Table(is_tied=owner.get("lm_head.weight", "") != "lm_head.weight"),
    )
    private = _private_slots(ours, owner)
    return dataclasses.replace(ours, varies=tuple((s, "recursion+block") for s in private))


def _private_slots(config: Model, owner: Mapping[str, str]) -> list[str]:
    """Returns the slots of which each recursion owns a tensor, although the pattern shares."""
    if config.schedule.num_recursions == 1:
        return []
    name = lambda r, array: owner[f"{_step(config, r, 0)}.{array}.weight"]
    return [slot for slot, array in SLOTS.items() if name(0, array) != name(1, array)]


def _is_sharing_keys(theirs: Mapping[str, Any], recursive: Mapping[str, Any]) -> bool:
    """Returns whether later recursions read the first one's keys and values.

    Raises:
      ConfigError: if these are shared in another pattern than weights.
    """
    keys = theirs.get("kv_sharing") or {}
    if not keys or keys.get("enable") is False:
        return False
    for option in ("num_recursion", "sharing"):
        got, wanted = keys.get(option, recursive.get(option)), recursive.get(option)
        if got != wanted:
            raise ConfigError(f"kv_sharing.{option}: got {got!r}, takes the {wanted!r} of weights")
    return True


def _num_layers(names: Iterable[str], recursions: int) -> int:
    """Returns the effective depth, counted from the names of parameters."""
    layers = trees.count(names, r"^model\.layers\.(\d+)\.")
    if blocks := trees.count(names, r"^model\.layers\.\d+\.block\.(\d+)\."):
        return layers - recursions + recursions * blocks
    if blocks := trees.count(names, r"^model\.layers\.\d+\.block_list\.\d+\.(\d+)\."):
        return layers - 1 + recursions * blocks
    return layers


def _step(config: Model, recursion: int, block: int) -> str:
    """Returns the prefix of the names of a step of the core."""
    depth, plan, first = config.depth, config.schedule, config.ends["prelude"]
    if isinstance(depth, expert_choice.ExpertChoice):
        return EXPERT.format(first + recursion, block)
    if isinstance(depth, token_choice.TokenChoice):
        return TOKEN.format(first, recursion, block)
    if plan.order == "cycle":
        return STEP.format(first + recursion * plan.num_blocks + block)
    return STEP.format(first + block * plan.num_recursions + recursion)


def params(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name, each use of a shared tensor named."""
    schedule, (prelude, coda) = config.schedule, config.ends.values()
    block = lambda name: llama.weights(config.block, named, name)
    step = lambda number: block(_step(config, *divmod(number, schedule.num_blocks)))
    core_layers = {
        expert_choice.ExpertChoice: schedule.num_recursions,
        token_choice.TokenChoice: 1,
    }.get(type(config.depth), schedule.num_steps)
    end = lambda first, count: trees.stack(block(STEP.format(first + i)) for i in range(count))
    depth = model.specs(config)["depth"]
    sections = {
        "prelude": end(0, prelude),
        "core": trees.banks(config, step),
        "coda": end(prelude + core_layers, coda),
        "depth": {name: _routing_params(name, config, named) for name in depth},
    }
    return llama.complete(config, named, sections)


def _routing_params(name: str, config: Model, named: Arrays) -> Params | np.ndarray:
    """Returns a router, a bank of routers, or the biases of a router's choice."""
    depth, recursions, first = config.depth, config.schedule.num_recursions, config.ends["prelude"]
    if name == "bias":
        # Their bias takes no gradient, and no file has one.
        return named.get(BIAS.format(first), np.zeros(recursions, np.float32))
    theirs = {"router": "mor_router", "aux_router": "mlp_router"}[name]

    def router(layer: int, kind: str) -> Params:
        weight = lambda inner: named[ROUTER.format(layer, theirs, inner)].T
        if kind == "linear":
            return {"out": weight("")}
        return {"hidden": weight(".0"), "out": weight(".2")}

    if isinstance(depth, token_choice.TokenChoice):
        return router(first, depth.router)
    kind = trees.narrow(depth, expert_choice.ExpertChoice).router
    bank = trees.stack(router(first + r, kind) for r in range(recursions))
    return {**bank, "out": bank["out"][..., 0]}
