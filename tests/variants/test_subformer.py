"""Ends with blocks of their own sizes, and embeddings that attend to the tokens before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import config, model, params
from recursia.convert import export, unroll
from recursia.convert.reference import subformer
from recursia.embeddings.self_attentive import SelfAttentive
from recursia.errors import ConfigError
from recursia.generate import slots
from recursia.layers.attention import Context
from recursia.mixers.grouped_query import GroupedQuery
from recursia.parameterisations.mup import MuP
from tests.helpers import points
from tests.helpers.refusals import refused
from tests.helpers.tiny import assert_close, draw, forward, is_equal, text, tiny

HEADS = GroupedQuery(2, 2, 4, rope_base=None, has_bias=True, has_value_bias=True)
SAFE = SelfAttentive(table_dim=8, mixer=HEADS, scale=4.0, position="halves", first_position=2)
WIDER = points.ENDS["ends of another width"]
NORMS = (("norms", "recursion+block"),)


def sandwich(layers=5, **options):
    made = tiny(sharing_="middle_cycle", recursions=layers - 2, blocks=1, varies=NORMS)
    return dataclasses.replace(made, **options)


def test_three_layers_share_nothing_and_are_the_vanilla_model():
    made = sandwich(3)
    free = tiny(sharing_="none", recursions=1, blocks=3)
    assert params.count(model.specs(made)) == params.count(model.specs(free))
    weights = draw(made)
    each = [weights[name] for name in ("prelude", "core", "coda")]
    specs = model.specs(free)["core"]
    join = lambda spec, *leaves: jnp.stack([x.reshape(-1) for x in leaves]).reshape(spec.shape)
    core = jax.tree.map(join, specs, *each)
    theirs = {**weights, "prelude": {}, "coda": {}, "core": core}
    assert_close(forward(weights, text(), made)[0], forward(theirs, text(), free)[0], n=256)


def test_the_middle_shares_all_but_its_norms():
    core = model.specs(sandwich(6))["core"]
    count = lambda slot: {spec.shape[0] for spec in jax.tree.leaves(core[slot])}
    assert count("norms") == {4} and count("attention") == count("mlp") == {1}


def test_ends_as_wide_as_the_middle_have_no_projections():
    same = sandwich(end_sizes=(("embed_dim", 16), ("mlp_dim", 24)))
    assert model.specs(same).keys() == model.specs(sandwich()).keys()
    weights = draw(same)
    assert is_equal(forward(weights, text(), same)[0], forward(weights, text(), sandwich())[0])
    narrow = model.specs(sandwich(end_sizes=WIDER))
    assert narrow["resize"]["up"]["matrix"].shape == (12, 16)
    assert narrow["embed"]["table"].shape[1] == narrow["final_norm"].shape[0] == 12


def test_a_self_attentive_embedding_is_its_equation():
    made = dataclasses.replace(tiny(), embed=SAFE)
    weights, ids = draw(made)["embed"], np.asarray(text())
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    angle = (np.arange(ids.shape[1]) + 2)[:, None] * 10_000.0 ** (-np.arange(4) / 3)
    x = 4 * w["table"][ids] + np.concatenate([np.sin(angle), np.cos(angle)], -1)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    a = w["attention"]
    q, k, v = (
        np.einsum("btd,dnh->btnh", x, a[n]) + a[f"{n}_bias"] for n in ("query", "key", "value")
    )
    score = np.einsum("btnh,bsnh->bnts", q, k) / 2
    score = np.where(np.tri(ids.shape[1], dtype=bool), score, -np.inf)
    share = np.exp(score - score.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    met = np.einsum("bnts,bsnh->btnh", share, v)
    x = norm(x + np.einsum("btnh,nhd->btd", met, a["out"]) + a["out_bias"], w["attention_norm"])
    hidden = np.maximum(x @ w["up"]["matrix"] + w["up"]["bias"], 0)
    hand = norm(hidden @ w["down"]["matrix"] + w["down"]["bias"], w["norm"])
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    ours = SAFE.embed(weights, text(), Context(places), jnp.float32)[0]
    assert_close(ours, hand, n=1024)


def test_without_attention_it_is_a_table():
    plain = dataclasses.replace(SAFE, position="none")
    weights = draw(dataclasses.replace(tiny(), embed=plain))["embed"]
    silent = jax.tree.map(jnp.zeros_like, weights["attention"])
    weights = {**weights, "attention": silent}
    embed = lambda ids: plain.embed(weights, ids, Context(jnp.zeros_like(ids)), jnp.float32)[0]
    rows = embed(jnp.arange(32)[:, None])[:, 0]
    assert_close(embed(text()), rows[text()], n=64)


REFUSED = {
    "end_sizes: got mlp_dim, and the model has no blocks": dict(sharing="cycle", ends="mlp_dim"),
    "end_sizes: got 'num_experts', takes each once of embed_dim": dict(ends="num_experts"),
    "end_sizes.expert_dim: the block has no such size": dict(ends="expert_dim"),
    "loop_norm: 'each' applies the head's norm": dict(ends="embed_dim", loop_norm="each"),
    "parameterisation: sets scales by one width": dict(
        ends="embed_dim", parameterisation=MuP(base_width=8)
    ),
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items(), ids=REFUSED)
def test_sizes_that_cannot_be_combined_are_refused(message, options):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        sandwich(end_sizes=((options.pop("ends"), 12),), **options)


def test_what_reads_one_width_or_one_table_refuses_others():
    with pytest.raises(ValueError, match="mixer: has attention_experts, attention_router"):
        dataclasses.replace(SAFE, mixer=points.small("mixer", "switch_head"))
    wide = sandwich(end_sizes=WIDER, varies=())
    with refused(ConfigError, "end_sizes"):
        unroll.unrolled(wide)
    with refused(ConfigError, "end_sizes"):
        export.export(wide, {}, None, "recursive", 8, None)
    safe = dataclasses.replace(tiny(), embed=SAFE)
    with refused(ConfigError, "config.embed"):
        export.export(safe, {}, None, "recursive", 8, None)
    assert slots.refusal(safe).startswith("embed: ")


def test_presets_have_the_sizes_of_the_released_commands():
    made = {name: config.load(f"subformer:{name}", {}).model for name in ("base", "wide")}
    wide = made["wide"]
    assert (wide.block.embed_dim, wide.end_block.embed_dim, wide.embed.table_dim) == (
        1024,
        512,
        256,
    )
    assert not made["base"].is_resized and made["base"].embed.table_dim == 320
    for each in made.values():
        assert each.block.mixer.num_heads == subformer.heads_of(each.block.embed_dim)
        assert each.embed.mixer.num_heads == subformer.heads_of(each.embed.table_dim)
