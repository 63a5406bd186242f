"""Names and shapes of the authors' arrays, in options that no file here has, are read as ours."""

import re

import jax
import numpy as np
import pytest

from recursia import model
from recursia.convert.reference import mor
from recursia.depth import expert_choice, token_choice

LLAMA = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
ATTENTION = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
MLP = {"gate_proj": (12, 8), "up_proj": (12, 8), "down_proj": (8, 12)}


def block(prefix):
    """Returns the shapes of one block's arrays, by name."""
    return {
        **{f"{prefix}.self_attn.{name}.weight": shape for name, shape in ATTENTION.items()},
        **{f"{prefix}.mlp.{name}.weight": shape for name, shape in MLP.items()},
        f"{prefix}.input_layernorm.weight": (8,),
        f"{prefix}.post_attention_layernorm.weight": (8,),
    }


def router(prefix, kind, outputs):
    if kind == "linear":
        return {f"{prefix}.router.weight": (outputs, 8)}
    return {f"{prefix}.router.0.weight": (16, 8), f"{prefix}.router.2.weight": (outputs, 16)}


def is_later(name, recursions, first):
    """Returns whether a block belongs to a recursion after the first."""
    return any(
        f".block_list.{r}." in name or f".layers.{first + r}.block." in name
        for r in range(1, recursions)
    )


def owners(shapes, recursions, first, own=()):
    """Returns the owner of each array: of a block, the first recursion's, but for some names."""

    def owner(name):
        if not is_later(name, recursions, first) or any(part in name for part in own):
            return name
        if ".block_list." in name:
            return re.sub(r"block_list\.\d+", "block_list.0", name)
        return re.sub(r"layers\.\d+", f"layers.{first}", name)

    return {name: owner(name) for name in shapes}


def theirs(recursions, blocks, sharing, kind, choice, kv_sharing=None, **own):
    """Returns their hyper-parameters, and the shapes of their arrays by name."""
    first = int(sharing == "middle_cycle")
    shapes = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,)}
    if choice == "token":
        layer = f"model.layers.{first}"
        for r, k in np.ndindex(recursions, blocks):
            shapes |= block(f"{layer}.block_list.{r}.{k}")
        shapes |= router(f"{layer}.mor_router", kind, recursions)
        if own.get("balancing") == "loss_free":
            shapes[f"{layer}.router_bias"] = (recursions,)
    else:
        for r in range(recursions):
            layer = f"model.layers.{first + r}"
            for k in range(blocks):
                shapes |= block(f"{layer}.block.{k}")
            shapes |= router(f"{layer}.mor_router", kind, 1)
            if own.get("sampling") == "aux_router":
                shapes |= router(f"{layer}.mlp_router", kind, 1)
    if first:
        last = 1 + (1 if choice == "token" else recursions)
        shapes |= block("model.layers.0") | block(f"model.layers.{last}")
    mor = {
        "type": choice,
        "router_type": kind,
        "capacity": ",".join(str((recursions - r) / recursions) for r in range(recursions)),
        "temp": 1.0,
        choice: own,
    }
    config = {
        "llama": dict(LLAMA),
        "recursive": {"num_recursion": recursions, "sharing": sharing},
        "mor": mor,
        "kv_sharing": kv_sharing,
        "attention_shared": True,
    }
    return config, shapes


@pytest.mark.parametrize("kind", ["linear", "mlp", "wide_mlp"])
@pytest.mark.parametrize(
    ("recursions", "sharing", "choice", "own"),
    [
        (2, "cycle", "token", {"router_func": "sigmoid", "balancing": "loss_free"}),
        (4, "middle_cycle", "token", {"router_func": "softmax", "alpha": 0.5}),
        (2, "middle_cycle", "expert", {"sampling": "aux_router", "router_func": "tanh"}),
        (4, "cycle", "expert", {"sampling": "aux_loss", "gating": "additive"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_array_is_taken_in_its_place(recursions, sharing, choice, own, kind, is_tied):
    config, shapes = theirs(recursions, 2, sharing, kind, choice, {"sharing": sharing}, **own)
    shapes["lm_head.weight"] = (11, 8)
    first = int(sharing != "cycle")
    owner = owners(shapes, recursions, first)
    if is_tied:
        owner["lm_head.weight"] = "model.embed_tokens.weight"
    ours = mor.config(config, owner)
    policy = token_choice.TokenChoice if choice == "token" else expert_choice.ExpertChoice
    assert isinstance(ours.depth, policy)
    assert ours.kv.kv_sharing == "first_recursion"
    assert ours.num_layers == 2 * recursions + 2 * (sharing == "middle_cycle")
    named = {name: np.full(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    tree = mor.params(ours, named)
    fits = jax.tree.map(lambda spec, leaf: leaf.shape == spec.shape, model.specs(ours), tree)
    assert jax.tree.all(fits)
    # Every router is read, and of shared blocks the first recursion's.
    used = {int(i) for leaf in jax.tree.leaves(tree) for i in np.unique(leaf)}
    left = {name for i, name in enumerate(shapes) if i not in used}
    head = {"lm_head.weight"} if is_tied else set()
    assert left == {name for name in shapes if is_later(name, recursions, first)} | head


def test_options_are_read_as_what_they_do():
    read = lambda choice, **own: mor.config(*named(theirs(3, 1, "cycle", "linear", choice, **own)))
    named = lambda pair: (pair[0], owners(pair[1], 3, 0))
    depth = read("token", balancing="loss_free", router_func="sigmoid").depth
    assert (depth.score, depth.alpha, depth.balancing) == ("sigmoid", 0.1, "loss_free")
    depth = read("token", balancing="loss", alpha=0.3, gating="none").depth
    assert (depth.score, depth.alpha, depth.gating) == ("softmax", 0.3, "additive")
    depth = read("expert", sampling="aux_router", alpha=0.2, router_func=None).depth
    assert (depth.sampling, depth.score, depth.alpha) == ("aux_router", "none", 0.2)
    assert depth.capacity == (1.0, 2 / 3, 1 / 3)


@pytest.mark.parametrize(
    "own", [(), ("layernorm",), ("self_attn",), ("layernorm", "mlp.")], ids=str
)
@pytest.mark.parametrize("choice", ["expert", "token"])
def test_a_slot_is_shared_where_their_arrays_are(own, choice):
    config, shapes = theirs(3, 2, "middle_cycle", "linear", choice)
    ours = mor.config(config, owners(shapes, 3, 1, own))
    parts = {"norms": "layernorm", "attention": "self_attn", "mlp": "mlp."}
    for slot, part in parts.items():
        assert ours.schedule.varies(slot) == (part in own)


def test_what_a_configuration_does_not_say_is_their_default():
    config, shapes = theirs(3, 1, "cycle", "linear", "expert", sampling="aux_loss")
    for name in ("num_key_value_heads", "rope_theta", "rms_norm_eps"):
        del config["llama"][name]
    del config["attention_shared"], config["kv_sharing"]
    ours = mor.config(config, owners(shapes, 3, 0))
    assert (ours.block.mixer.num_kv_heads, ours.block.mixer.rope_base) == (4, 10_000)
    assert ours.kv.kv_sharing == "own"
