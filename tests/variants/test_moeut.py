"""MoEUT: its layer, its regulariser and its sizes, against the equations in float64 NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, kv, params
from recursia.architecture import Model
from recursia.depth import fixed
from recursia.embeddings.table import Table
from recursia.layers.attention import Context
from recursia.layers.balance import Usage
from recursia.sharing.remat import Remat
from tests.helpers.blocks import altered, flat, published
from tests.helpers.flops import assert_exact
from tests.helpers.moeut_by_hand import regulariser, run
from tests.helpers.tiny import (
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    error,
    forward,
    is_equal,
    text,
)

BLOCK = published(
    "moeut",
    embed_dim=16,
    num_heads=2,
    head_dim=6,
    num_experts=5,
    top_k=2,
    expert_dim=4,
    num_attention_experts=3,
)
GATED = altered(BLOCK, num_attention_experts=1)


def build(block=BLOCK, group=2, repeats=3, kv_sharing="own", depth=None, vocab=VOCAB, **options):
    return Model(
        group * repeats,
        block,
        depth or fixed.Fixed(repeats),
        sharing="cycle",
        kv=kv.Plan(kv_sharing),
        embed=Table(is_tied=False, has_head_bias=True),
        **options,
    ).sized(vocab)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("block", "group", "kv_sharing"),
    [
        (BLOCK, 2, "own"),
        (BLOCK, 1, "first_recursion"),
        (GATED, 2, "own"),
        (GATED, 1, "first_recursion"),
        (altered(BLOCK, top_k=5, rope_fraction=1.0, num_heads=3), 1, "own"),
        (altered(BLOCK, num_experts=1, top_k=1, head_dim=3), 3, "own"),
    ],
    ids=["experts", "experts read", "gate", "gate read", "all chosen", "one expert"],
)
def test_it_is_the_equations(block, group, kv_sharing):
    config = build(block, group, kv_sharing=kv_sharing)
    weights, tokens = draw(config), text()
    logits, records = run(weights, tokens, config)
    # Of one block every mode; what a mode changes, no other width does.
    for mode in ("eval", "train", "causal") if block is BLOCK else ("train",):
        ours, aux = forward(weights, tokens, config, mode)
        assert_close(ours, logits, 256)
        expected = block.feedforward.entropy_weight * regulariser(records, ("router",))
        assert abs(aux.losses["expert_entropy"] - expected) < 1e-6
        if block.mixer.has_attention_experts:
            expected = block.mixer.attention_entropy_weight * regulariser(records, ("value", "out"))
            assert abs(aux.losses["attention_entropy"] - expected) < 1e-6
        else:
            assert aux.losses.keys() == {"expert_entropy"}


@pytest.mark.slow
def test_a_repeated_group_is_a_stack_of_its_copies():
    config, stack = build(group=2, repeats=2), build(group=4, repeats=1)
    weights = draw(config)
    twice = {**weights, "core": jax.tree.map(lambda p: jnp.concatenate([p, p]), weights["core"])}
    assert_close(forward(weights, text(), config)[0], forward(twice, text(), stack)[0], 256)


def block_of(block, seed=0):
    """Returns one block's weights, hidden states and their context."""
    weights = jax.tree.map(lambda p: p[0], draw(build(block, group=1, repeats=1), seed)["core"])
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, LENGTH, 16)), jnp.float32)
    where = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    return weights, x, Context(where, jnp.ones_like(where))


@pytest.mark.parametrize("block", [BLOCK, GATED], ids=["experts", "gate"])
def test_a_scaled_state_is_routed_alike_and_gives_a_scaled_result(block):
    block = dataclasses.replace(block, norm_eps=1e-12)
    weights, x, context = block_of(block)
    y, _, report = block.apply(weights, x, context)
    scaled, _, report_scaled = block.apply(weights, 8 * x, context)
    assert_close(scaled, 8 * y, 256)
    taken = lambda report: jax.tree.map(lambda usage: usage.taken, report, is_leaf=_is_usage)
    assert is_equal(taken(report), taken(report_scaled))
    # With a normalisation that is not free of scale both would change.
    crude = dataclasses.replace(block, norm_eps=10.0)
    a, b = (crude.apply(weights, s * x, context)[0] / s for s in (1, 8))
    assert error(a, b) > 1e-2


def _is_usage(leaf):
    return isinstance(leaf, Usage)


def test_all_experts_at_full_gate_are_one_wide_relu_mlp():
    block = altered(BLOCK, top_k=BLOCK.feedforward.num_experts)
    weights, x, context = block_of(block)
    sure = {"scale": jnp.zeros(16), "bias": jnp.ones(16)}
    weights |= {
        "router": jnp.full_like(weights["router"], 5.0),  # logits of 80
        "norms": {**weights["norms"], "experts": sure},
        "attention_experts": jax.tree.map(jnp.zeros_like, weights["attention_experts"]),
    }
    up, down = (np.asarray(weights["experts"][name], np.float64) for name in ("up", "down"))
    wide = np.maximum(x @ np.concatenate(list(up), 1), 0) @ np.concatenate(list(down), 0)
    assert_close(block.apply(weights, x, context)[0], x + wide, 64)


def test_uniform_routers_have_the_lowest_loss_and_one_expert_has_none():
    config = build(group=2)
    weights = draw(config)
    core = weights["core"]
    flat = {slot: jax.tree.map(jnp.zeros_like, core[slot]) for slot in BLOCK.exact}
    _, aux = forward({**weights, "core": {**core, **flat}}, text(), config)
    assert aux.losses["expert_entropy"] == pytest.approx(-2 * 0.01 * math.log(5))
    assert aux.losses["attention_entropy"] == pytest.approx(-2 * 2 * 0.001 * math.log(3))
    one = build(altered(BLOCK, num_experts=1, top_k=1))
    assert forward(draw(one), text(), one)[1].losses["expert_entropy"] == 0


def test_fillers_are_not_counted():
    weights, x, context = block_of(BLOCK)
    live = jnp.arange(LENGTH) % 3 > 0
    _, _, report = BLOCK.apply(weights, x, context.count_only(live[None] | (x[..., 0] > 9)))
    usages = jax.tree.leaves(report, is_leaf=_is_usage)
    assert len(usages) == 3
    for usage in usages:
        assert (usage.tokens == live.sum()).all()


def test_routers_are_float32_in_bfloat16():
    config = build(group=1, dtype="bfloat16")
    weights = draw(config)
    finer = {s: jax.tree.map(lambda p: p * (1 + 2**-12), weights["core"][s]) for s in BLOCK.exact}
    same = jax.tree.map(
        lambda p, q: (p.astype("bfloat16") == q.astype("bfloat16")).mean(),
        *(({s: tree[s] for s in BLOCK.exact}) for tree in (weights["core"], finer)),
    )
    assert min(jax.tree.leaves(same)) > 0.8
    losses = lambda core: forward({**weights, "core": core}, text(), config)[1].losses
    assert not is_equal(losses(weights["core"]), losses({**weights["core"], **finer}))


@pytest.mark.parametrize(
    ("kv_sharing", "remat"),
    [("own", "block"), ("first_recursion", "none"), ("own", "recursion")],
)
def test_flops_of_one_attention_expert_are_exact(kv_sharing, remat):
    assert_exact(build(GATED, kv_sharing=kv_sharing, vocab=11), remat=Remat(remat))


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("44m", "44.35"),
        ("126m", "125.7"),
        ("244m", "243.3"),
        ("318m", "318.1"),
        ("727m", "727.4"),
        ("1b", "1040.3"),
    ],
)
def test_published_sizes_are_exact(preset, millions):
    run = config.load(f"moeut:{preset}", {})
    block, plan = flat(run.model.block), run.model.schedule
    d, wide = block.embed_dim, block.num_heads * block.head_dim
    ffn = block.num_experts * (2 * d * block.expert_dim + d)
    each = 2 * block.mixer.num_attention_experts * (d * wide + block.num_heads * d)
    layer = ffn + 2 * d * wide + each + 4 * d
    count = accounting.unique_parameters(run.model.sized(8000))
    assert count == plan.num_blocks * layer + 2 * 8000 * d + 8000 + 2 * d
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_initial_scales_are_those_of_the_effective_depth():
    block = altered(BLOCK, embed_dim=256, expert_dim=32, num_heads=4, head_dim=16)
    drawn = lambda steps: params.init(block.specs(steps), jax.random.key(0))
    ours, deeper = drawn(8), drawn(32)
    for slot in BLOCK.slots[1:]:
        assert_close(jax.tree.map(lambda p: 2 * p, deeper[slot]), ours[slot])
    scale = math.sqrt(2 / 8)
    expected = {
        "attention": {"query": scale / 16, "key": scale / 16},
        "attention_experts": {"value": scale / 16, "out": scale / 8},
        "attention_router": {"value": scale / 16, "out": scale / 16},
        "experts": {"up": scale / 16, "down": scale / math.sqrt(5 * 32)},
        "router": scale / 16,
    }
    for slot, stds in expected.items():
        close = jax.tree.map(lambda p, std: abs(p.std() / std - 1) < 0.06, ours[slot], stds)
        assert jax.tree.all(close), slot
    lengths = lambda matrix: jnp.linalg.norm(matrix, axis=0)
    assert lengths(ours["router"]).std() < 1e-6 < lengths(ours["attention_router"]["out"]).std()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 6),
        ("attention_top_k", 4),
        ("rope_fraction", 1.5),
        ("expert_dim", 0),
    ],
)
def test_a_width_that_cannot_be_is_refused_in_one_line(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got {value}, takes [^\n]*$"):
        altered(BLOCK, **{field: value})
