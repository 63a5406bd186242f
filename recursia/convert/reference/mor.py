"""Configurations and parameters of the authors' PyTorch code, as ours.

Recursive Transformers and Mixture-of-Recursions: raymin0223/mixture_of_recursions. Names are those
of its `state_dict`; a linear weight is `[out, in]`. With expert choice, a layer of the list is one
recursion and holds its blocks; with token choice, one layer holds all recursions; without routing,
a layer is one step.
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
from recursia.depth import expert_choice, fixed, token_choice
from recursia.depth.policy import Aux
from recursia.errors import ConfigError
from recursia.layers import embedding
from recursia.sharing import grid as sharing

EXPERT = "model.layers.{}.block.{}"
TOKEN = "model.layers.{}.block_list.{}.{}"
STEP = "model.layers.{}"
ROUTER = "model.layers.{}.{}.router{}.weight"
BIAS = "model.layers.{}.router_bias"
KINDS = {"linear": "linear", "mlp": "mlp", "wide_mlp": "mlp"}  # the last two are one code
# A file's total loss holds the loss of the router times this, whatever coefficient it trained with,
# and no z-loss.
IN_TOTAL = 0.001


def case(file: Mapping[str, np.ndarray]) -> Case:
    """Returns what a file of these families asks of us."""
    alias = aliases(file)
    owner = {name: alias.get(name, name) for name in under(file, "param/")}
    ours = config(json.loads(str(file["config"])), owner)
    tokens = np.asarray(file["tokens"])
    targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)

    def losses(aux: Aux) -> list[tuple[str, Any]]:
        names = {"router_loss": "router_cross_entropy", "balancing_loss": "router_balance"}
        return [(k, aux.metrics[v].sum()) for k, v in names.items() if v in aux.metrics]

    def arrays(aux: Aux, _: Any) -> list[tuple[str, Any]]:
        shares = aux.metrics.get("depth_share")
        return [] if shares is None else [("balancing_ratio", shares)]

    kept = lambda aux: [(r, aux.depth_used > r) for r in range(ours.grid.num_recursions)]
    return Case(
        ours,
        functools.partial(params, ours),
        tokens,
        targets,
        losses=losses,
        arrays=arrays,
        kept=kept,
    )


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
    recursions, how = theirs["recursive"]["num_recursion"], theirs["recursive"]["sharing"]
    depth = _routing(theirs) if mor else fixed.Config(recursions)
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
        depth=depth,
        grid=sharing.plan(
            _num_layers(owner, recursions),
            recursions,
            how,
            () if theirs["attention_shared"] else (("attention", "recursion+block"),),
            llama.SLOTS,
            model.module(depth).SLOTS,
        ),
        kv=kv.Config("first_recursion" if theirs["kv_sharing"] else "own"),
        embed=embedding.Config(is_tied=owner.get("lm_head.weight", "") != "lm_head.weight"),
    )


def _routing(theirs: dict[str, Any]) -> expert_choice.Config | token_choice.Config:
    """Returns the depth policy.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    mor = theirs["mor"]
    if mor["type"] not in ("expert", "token"):
        raise ConfigError(f"mor.type: got {mor['type']!r}, takes 'expert' or 'token'")
    if (theirs["kv_sharing"] or {}).get("update_cache"):
        raise ConfigError("kv_sharing.update_cache: got True, and it is not read here")
    if mor.get("rand_router"):
        raise ConfigError("mor.rand_router: got True, and it is not read here")
    if mor["router_type"] not in KINDS:
        raise ConfigError(f"mor.router_type: got {mor['router_type']!r}, takes {', '.join(KINDS)}")
    own = mor[mor["type"]]
    for name in ("cap_warmup_step", "bal_warmup_step"):
        if own.get(name):
            raise ConfigError(f"mor.{mor['type']}.{name}: got {own[name]}, takes 0 or none")
    shared = {
        "num_recursions": theirs["recursive"]["num_recursion"],
        "gating": "weighted" if own.get("gating", "weighted") == "weighted" else "additive",
        "router": KINDS[mor["router_type"]],
        "temperature": mor.get("temp") or 1.0,
    }
    return _expert_choice(mor, shared) if mor["type"] == "expert" else _token_choice(own, shared)


def _expert_choice(mor: dict[str, Any], shared: dict[str, Any]) -> expert_choice.Config:
    own = mor["expert"]
    if own.get("sampling") not in ("aux_loss", "aux_router", None):
        raise ConfigError(
            f"mor.expert.sampling: got {own['sampling']!r}, takes 'aux_loss' or 'aux_router'"
        )
    return expert_choice.Config(
        capacity=tuple(float(c) for c in str(mor["capacity"]).split(",")),
        alpha=own.get("alpha") or 1.0,
        score=own.get("router_func") or "none",
        sampling=own.get("sampling") or "aux_loss",
        aux_loss_weight=IN_TOTAL if own.get("sampling") else 0.0,
        **shared,
    )


def _token_choice(own: dict[str, Any], shared: dict[str, Any]) -> token_choice.Config:
    if own.get("balancing") not in ("loss", "loss_free", None):
        raise ConfigError(
            f"mor.token.balancing: got {own['balancing']!r}, takes 'loss' or 'loss_free'"
        )
    return token_choice.Config(
        score="sigmoid" if own.get("router_func") == "sigmoid" else "softmax",
        alpha=own.get("alpha"),
        balancing=own.get("balancing") or "none",
        balance_weight=IN_TOTAL,
        **shared,
    )


def _num_layers(names: Iterable[str], recursions: int) -> int:
    """Returns the effective depth, from the parameters that are there."""
    found = lambda pattern: {m[1] for name in names if (m := re.match(pattern, name))}
    layers = 1 + max(map(int, found(r"model\.layers\.(\d+)\.")))
    if blocks := found(r"model\.layers\.\d+\.block\.(\d+)\."):
        return layers - recursions + recursions * len(blocks)
    if blocks := found(r"model\.layers\.\d+\.block_list\.\d+\.(\d+)\."):
        return layers - 1 + recursions * len(blocks)
    return layers


def params(config: model.Config, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns our parameter tree from arrays under their names, each use of a tensor named."""
    grid, specs = config.grid, model.specs(config)
    kind = type(config.depth)
    block = lambda name: _block(config.block, named, name)

    def step(recursion: int, k: int) -> dict[str, Any]:
        if kind is expert_choice.Config:
            return block(EXPERT.format(grid.prelude + recursion, k))
        if kind is token_choice.Config:
            return block(TOKEN.format(grid.prelude, recursion, k))
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

    middle = {expert_choice.Config: grid.num_recursions, token_choice.Config: 1}
    steps = grid.num_recursions * grid.num_blocks
    last = grid.prelude + middle.get(kind, steps)
    ends = lambda name, count: jax.tree.map(lambda p: p[None], block(name)) if count else {}
    embed = {"table": named["model.embed_tokens.weight"]}
    if not config.embed.is_tied:
        embed["head"] = named["lm_head.weight"]
    return {
        "embed": embed,
        "prelude": ends(STEP.format(0), grid.prelude),
        "core": {slot: bank(slot, tree) for slot, tree in specs["core"].items()},
        "coda": ends(STEP.format(last), grid.coda),
        "depth": {
            name: _routing_params(name, config.depth, grid, named) for name in specs["depth"]
        },
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


def _routing_params(
    name: str,
    depth: expert_choice.Config | token_choice.Config,
    grid: sharing.Grid,
    named: dict[str, np.ndarray],
) -> Any:
    """Returns a router, or all of a bank, or the biases that choose."""
    if name == "bias":
        # Their bias takes no gradient, and no file has one.
        return named.get(BIAS.format(grid.prelude), np.zeros(grid.num_recursions, np.float32))
    theirs = {"router": "mor_router", "aux_router": "mlp_router"}[name]

    def layer(at: int) -> dict[str, np.ndarray]:
        w = lambda inner: named[ROUTER.format(at, theirs, inner)].T
        if depth.router == "linear":
            return {"out": w("")}
        return {"hidden": w(".0"), "out": w(".2")}

    if isinstance(depth, token_choice.Config):
        return layer(grid.prelude)
    layers = [layer(grid.prelude + r) for r in range(grid.num_recursions)]
    bank = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {**bank, "out": bank["out"][..., 0]}
