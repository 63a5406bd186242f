"""Configurations and parameters of the authors' PyTorch code, as ours.

Recursive Transformers and Mixture-of-Recursions: raymin0223/mixture_of_recursions. Names are those
of its `state_dict`; a linear weight is `[out, in]`. With expert choice, a layer of the list is one
recursion and holds its blocks; with token choice, one layer holds all recursions; without routing,
a layer is one step.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from recursia import kv, model
from recursia.architecture import Model
from recursia.convert.reference import Case, aliases, banks, llama, mor_routing, under
from recursia.depth import expert_choice, fixed, token_choice
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.layers import embedding

EXPERT = "model.layers.{}.block.{}"
TOKEN = "model.layers.{}.block_list.{}.{}"
STEP = "model.layers.{}"
ROUTER = "model.layers.{}.{}.router{}.weight"
BIAS = "model.layers.{}.router_bias"
# One array of each slot, which tells whether the slot is shared.
SLOTS = {
    "norms": "input_layernorm",
    "attention": "self_attn.q_proj",
    "mlp": "mlp.gate_proj",
}


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of these families asks of us."""
    alias = aliases(file)
    owner = {name: alias.get(name, name) for name in under(file, "param/")}
    ours = config(json.loads(str(file["config"])), owner)
    tokens = np.asarray(file["tokens"])
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)
    expert = isinstance(ours.depth, expert_choice.ExpertChoice) and ours.depth.aux_loss_weight > 0
    balancing = getattr(ours.depth, "balancing", "none")

    # A loss that their model is trained without is 0 in a file, whatever its value would be.
    def losses(aux: Aux) -> list[tuple[str, Any]]:
        if expert:
            return [("router_loss", aux.metrics["router_cross_entropy"].sum())]
        is_lost = balancing == "loss"
        return [("balancing_loss", aux.metrics["router_balance"])] if is_lost else []

    def arrays(aux: Aux, _: Any) -> list[tuple[str, Any]]:
        is_counted = balancing != "none"
        return [("balancing_ratio", aux.metrics["depth_share"])] if is_counted else []

    kept = lambda aux: [(r, aux.depth_used > r) for r in range(ours.schedule.num_recursions)]
    return Case(
        ours,
        functools.partial(params, ours),
        tokens,
        targets,
        losses=losses,
        arrays=arrays,
        kept=kept,
    )


def config(theirs: dict[str, Any], owner: dict[str, str]) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters: `llama`, `recursive`, `mor`, `kv_sharing`.
      owner: for every parameter name of their model, the name that owns the tensor. How deep the
        model really is stands there, for their code drops layers that do not divide; and so does
        which slots recursions share.

    Raises:
      ConfigError: for an option that has no counterpart here.
      ValueError: for options that do not go together here.
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
        embed=embedding.Embedding(is_tied=owner.get("lm_head.weight", "") != "lm_head.weight"),
    )
    private = _private_slots(ours, owner)
    return dataclasses.replace(ours, varies=tuple((s, "recursion+block") for s in private))


def _private_slots(config: Model, owner: dict[str, str]) -> list[str]:
    """Returns the slots of which each recursion owns a tensor, under a pattern that shares."""
    if config.schedule.num_recursions == 1:
        return []
    name = lambda r, array: owner[f"{_step(config, r, 0)}.{array}.weight"]
    return [slot for slot, array in SLOTS.items() if name(0, array) != name(1, array)]


def _is_sharing_keys(theirs: dict[str, Any], recursive: dict[str, Any]) -> bool:
    """Returns whether later recursions read the first one's keys and values.

    Raises:
      ConfigError: where these are shared in another pattern than weights.
    """
    own = theirs.get("kv_sharing") or {}
    if not own or own.get("enable") is False:
        return False
    for option in ("num_recursion", "sharing"):
        got, wanted = own.get(option, recursive.get(option)), recursive.get(option)
        if got != wanted:
            raise ConfigError(f"kv_sharing.{option}: got {got!r}, takes the {wanted!r} of weights")
    return True


def _num_layers(names: Iterable[str], recursions: int) -> int:
    """Returns the effective depth, from the parameters that are there."""
    found = lambda pattern: {m[1] for name in names if (m := re.match(pattern, name))}
    layers = 1 + max(map(int, found(r"model\.layers\.(\d+)\.")))
    if blocks := found(r"model\.layers\.\d+\.block\.(\d+)\."):
        return layers - recursions + recursions * len(blocks)
    if blocks := found(r"model\.layers\.\d+\.block_list\.\d+\.(\d+)\."):
        return layers - 1 + recursions * len(blocks)
    return layers


def _step(config: Model, recursion: int, block: int) -> str:
    """Returns the name of a step of the core."""
    depth, plan, first = config.depth, config.schedule, config.ends["prelude"]
    if isinstance(depth, expert_choice.ExpertChoice):
        return EXPERT.format(first + recursion, block)
    if isinstance(depth, token_choice.TokenChoice):
        return TOKEN.format(first, recursion, block)
    if plan.order == "cycle":
        return STEP.format(first + recursion * plan.num_blocks + block)
    return STEP.format(first + block * plan.num_recursions + recursion)


def params(config: Model, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names, each use of a tensor named."""
    plan, specs, (prelude, coda) = config.schedule, model.specs(config), config.ends.values()
    block = lambda name: llama.weights(config.block, named, name)
    step = lambda number: block(_step(config, *divmod(number, plan.num_blocks)))
    middle = {expert_choice.ExpertChoice: plan.num_recursions, token_choice.TokenChoice: 1}
    last = prelude + middle.get(type(config.depth), plan.num_steps)
    ends = lambda name, count: jax.tree.map(lambda p: p[None], block(name)) if count else {}
    embed = {"table": named["model.embed_tokens.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["lm_head.weight"]
    return {
        "embed": embed,
        "prelude": ends(STEP.format(0), prelude),
        "core": banks(config, step),
        "coda": ends(STEP.format(last), coda),
        "depth": {name: _routing_params(name, config, named) for name in specs["depth"]},
        "inject": {},
        "final_norm": named["model.norm.weight"],
    }


def _routing_params(
    name: str,
    config: Model,
    named: dict[str, np.ndarray],
) -> Any:
    """Returns a router, or all of a bank, or the biases that choose."""
    depth, plan, first = config.depth, config.schedule, config.ends["prelude"]
    if name == "bias":
        # Their bias takes no gradient, and no file has one.
        return named.get(BIAS.format(first), np.zeros(plan.num_recursions, np.float32))
    theirs = {"router": "mor_router", "aux_router": "mlp_router"}[name]

    def layer(at: int) -> dict[str, np.ndarray]:
        w = lambda inner: named[ROUTER.format(at, theirs, inner)].T
        if depth.router == "linear":
            return {"out": w("")}
        return {"hidden": w(".0"), "out": w(".2")}

    if isinstance(depth, token_choice.TokenChoice):
        return layer(first)
    layers = [layer(first + r) for r in range(plan.num_recursions)]
    bank = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {**bank, "out": bank["out"][..., 0]}
