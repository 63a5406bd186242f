"""Configurations and parameters of the authors' PyTorch code, as ours.

Recursive Transformers and Mixture-of-Recursions: raymin0223/mixture_of_recursions. Names are those
of its `state_dict`; a linear weight is `[out, in]`. With routing, a layer of the list is one
recursion and holds its blocks; without, it is one step.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from recursia import kv, model
from recursia.blocks import llama
from recursia.convert.reference import Case, aliases, under
from recursia.depth import expert_choice, fixed
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.layers import embedding
from recursia.sharing import grid as sharing

ROUTED = "model.layers.{}.block.{}"
STEP = "model.layers.{}"


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of these families asks of us."""
    alias = aliases(file)
    owner = {name: alias.get(name, name) for name in under(file, "param/")}
    ours = config(json.loads(str(file["config"])), owner)
    tokens = np.asarray(file["tokens"])
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)

    def losses(aux: Aux) -> list[tuple[str, Any]]:
        found = aux.metrics.get("router_cross_entropy")
        return [] if found is None else [("router_loss", found.sum())]

    kept = lambda aux: [(r, aux.depth_used > r) for r in range(ours.grid.num_recursions)]
    return Case(ours, functools.partial(params, ours), tokens, targets, losses=losses, kept=kept)


def config(theirs: dict[str, Any], owner: dict[str, str]) -> model.Config:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters: `llama`, `recursive`, `mor`, `kv_sharing`, `attention_shared`.
      owner: for every parameter name of their model, the name that owns the tensor. How deep the
        model really is stands there, for their code drops layers that do not divide.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    shape, mor = theirs["llama"], theirs["mor"]
    depth = _expert_choice(theirs) if mor else None
    recursions, how = theirs["recursive"]["num_recursion"], theirs["recursive"]["sharing"]
    heads = shape["num_attention_heads"]
    block = llama.Config(
        embed_dim=shape["hidden_size"],
        num_heads=heads,
        num_kv_heads=shape["num_key_value_heads"],
        head_dim=shape.get("head_dim") or shape["hidden_size"] // heads,
        mlp_dim=shape["intermediate_size"],
        rope_base=shape["rope_theta"],
        norm_eps=shape["rms_norm_eps"],
    )
    return model.Config(
        vocab_size=shape["vocab_size"],
        block=block,
        depth=depth or fixed.Config(recursions),
        grid=sharing.plan(
            _num_layers(owner, recursions, bool(mor)),
            recursions,
            how,
            () if theirs["attention_shared"] else (("attention", "recursion+block"),),
            llama.SLOTS,
            expert_choice.SLOTS if mor else fixed.SLOTS,
        ),
        kv=kv.Config("first_recursion" if theirs["kv_sharing"] else "own"),
        embed=embedding.Config(is_tied=owner.get("lm_head.weight", "") != "lm_head.weight"),
    )


def _expert_choice(theirs: dict[str, Any]) -> expert_choice.Config:
    mor = theirs["mor"]
    if mor["type"] != "expert":
        raise ConfigError(f"reference: router type {mor['type']!r} is not read here; 'expert' is")
    if mor.get("rand_router") or mor["expert"]["sampling"] not in ("aux_loss", None):
        raise ConfigError(
            f"reference: rand_router {mor.get('rand_router')} with sampling "
            f"{mor['expert']['sampling']!r} is not read here; a router with 'aux_loss' is"
        )
    if (theirs["kv_sharing"] or {}).get("update_cache"):
        raise ConfigError("reference: kv_sharing with update_cache is not read here")
    return expert_choice.Config(
        num_recursions=theirs["recursive"]["num_recursion"],
        capacity=tuple(float(c) for c in str(mor["capacity"]).split(",")),
        alpha=mor["expert"]["alpha"],
        score=mor["expert"]["router_func"] or "none",
        gating="weighted" if mor["expert"].get("gating", "weighted") == "weighted" else "additive",
        router="linear" if mor["router_type"] == "linear" else "mlp",
        temperature=mor["temp"],
        aux_loss_weight=mor["expert"]["coeff"],
    )


def _num_layers(names: Iterable[str], recursions: int, is_routed: bool) -> int:
    """Returns the effective depth, from the parameters that are there."""
    layers = 1 + max(
        int(m[1]) for name in names if (m := re.match(r"model\.layers\.(\d+)\.", name))
    )
    if not is_routed:
        return layers
    blocks = {
        m[1] for name in names if (m := re.match(r"model\.layers\.\d+\.block\.(\d+)\.", name))
    }
    return layers - recursions + recursions * len(blocks)


def params(config: model.Config, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names, each use of a tensor named."""
    grid, specs = config.grid, model.specs(config)
    is_routed = "router" in specs["depth"]
    block = lambda name: _block(config.block, named, name)

    def step(recursion: int, k: int) -> dict[str, Any]:
        if is_routed:
            return block(ROUTED.format(grid.prelude + recursion, k))
        is_cycle = grid.order == "cycle"
        at = recursion * grid.num_blocks + k if is_cycle else k * grid.num_recursions + recursion
        return block(STEP.format(grid.prelude + at))

    def bank(slot: str, specs: Any) -> Any:
        """Takes each entry from the first step that uses it."""
        table = np.array(grid.table_of(slot))
        first = [np.argwhere(table == entry)[0].tolist() for entry in range(table.max() + 1)]
        trees = [step(r, k)[slot] for r, k in first]
        return jax.tree.map(
            lambda spec, *leaves: np.stack(leaves).reshape(spec.shape), specs, *trees
        )

    last = grid.prelude + (grid.num_recursions if is_routed else grid.num_steps - 2 * grid.prelude)
    ends = lambda name, count: jax.tree.map(lambda p: p[None], block(name)) if count else {}
    embed = {"table": named["model.embed_tokens.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["lm_head.weight"]
    return {
        "embed": embed,
        "prelude": ends(STEP.format(0), grid.prelude),
        "core": {slot: bank(slot, tree) for slot, tree in specs["core"].items()},
        "coda": ends(STEP.format(last), grid.coda),
        "depth": {"router": _routers(grid, named)} if is_routed else {},
        "inject": {},
        "final_norm": named["model.norm.weight"],
    }


def _block(config: llama.Config, named: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    w = lambda name: named[f"{prefix}.{name}.weight"]
    heads = lambda name, n: w(f"self_attn.{name}").T.reshape(config.embed_dim, n, config.head_dim)
    out = w("self_attn.o_proj").T.reshape(config.num_heads, config.head_dim, config.embed_dim)
    return {
        "norms": {"attention": w("input_layernorm"), "mlp": w("post_attention_layernorm")},
        "attention": {
            "query": heads("q_proj", config.num_heads),
            "key": heads("k_proj", config.num_kv_heads),
            "value": heads("v_proj", config.num_kv_heads),
            "out": out,
        },
        "mlp": {name: w(f"mlp.{name}_proj").T for name in ("gate", "up", "down")},
    }


def _routers(grid: sharing.Grid, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = "model.layers.{}.mor_router.router{}.weight"
    layer = lambda inner: np.stack(
        [named[name.format(grid.prelude + r, inner)] for r in range(grid.num_recursions)]
    )
    if name.format(grid.prelude, "") in named:
        return {"out": layer("")[:, 0]}
    return {"hidden": layer(".0").swapaxes(1, 2), "out": layer(".2")[:, 0]}
