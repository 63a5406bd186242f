"""The Sparse Universal Transformer's block is its published formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, params
from recursia.architecture import Model
from recursia.depth import fixed, stick_breaking
from recursia.kernels.dispatch import Op
from recursia.layers import balance
from recursia.layers.attention import Context, KeysValues, attend
from tests.helpers import by_hand
from tests.helpers.blocks import altered, arranged, flat, published
from tests.helpers.by_hand import gelu, layer_norm
from tests.helpers.sut_by_hand import attention_by_hand, block_by_hand
from tests.helpers.tiny import (
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    error,
    forward,
    is_equal,
    text,
    tol,
)

BLOCK = published(
    "sut",
    embed_dim=16,
    num_heads=2,
    head_dim=4,
    num_attention_experts=5,
    attention_top_k=2,
    num_experts=6,
    top_k=3,
    expert_dim=8,
    num_distances=5,
)
POSITIONS = np.array([[*range(7), *range(5)], [*range(12)]])
SEGMENTS = np.array([[1] * 7 + [2] * 5, [1] * 12])
LIVE = np.random.default_rng(5).random((2, LENGTH)) < 0.6
USES = ("attention_router", "router")


def small(depth=None, recursions=3, blocks=1, block=BLOCK, **options):
    """Returns a model of one or more such blocks, halting unless told otherwise."""
    depth = depth or stick_breaking.StickBreaking(recursions)
    options = {"sharing": "cycle", "vocab_size": VOCAB, **options}
    return Model(recursions * blocks, block, depth, **options).sized(VOCAB)


def weights_of(block, seed=0):
    """Returns one block's weights, large enough that all matter."""
    config = small(fixed.Fixed(1), 1, block=block)
    return jax.tree.map(lambda leaf: leaf[0], draw(config, seed)["core"])


def states(seed):
    return np.random.default_rng(seed).normal(size=(2, LENGTH, BLOCK.embed_dim))


def apply(weights, x, block, is_live=LIVE, memory=None):
    """Returns what the block gives, and what it reports."""
    live = None if is_live is None else jnp.asarray(is_live)
    context = Context(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS), live)
    narrow = lambda x: None if x is None else jnp.asarray(x, jnp.float32)
    run = jax.jit(lambda w, x, m: block.apply(w, x, context, None, m))
    x, _, report = run(weights, narrow(x), narrow(memory))
    return x, report


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("has_memory", [False, True])
@pytest.mark.parametrize("is_live", [None, LIVE], ids=["all live", "some live"])
def test_the_block_is_its_formula(norm, has_memory, is_live):
    block = arranged(BLOCK, f"{norm}_norm")
    weights, x, memory = weights_of(block), states(0), states(1) if has_memory else None
    found, report = apply(weights, x, block, is_live, memory)
    w, live = by_hand.pick(weights, ...), np.ones_like(LIVE) if is_live is None else LIVE
    sums = {name: [] for name in USES}
    for row in range(2):
        where = POSITIONS[row], SEGMENTS[row], live[row]
        made = x[row] if memory is None else memory[row]
        y, routed = block_by_hand(w, x[row], made, where, block)
        assert_close(found[row], y)
        for name, p in zip(USES, routed, strict=True):
            sums[name].append(p[live[row]])
    for name in USES:
        assert_close(report[name].probability, np.stack([p.sum(0) for p in sums[name]]))
        assert_close(report[name].entropy, [-(p * np.log(p)).sum() for p in sums[name]])
        assert np.array_equal(report[name].tokens, live.sum(1))


def test_one_expert_is_a_dense_layer():
    one = dict(num_attention_experts=1, attention_top_k=1, num_experts=1, top_k=1)
    block = altered(BLOCK, **one)
    weights, x = weights_of(block), states(0)
    w = by_hand.pick(weights, ...)
    norm = lambda x, name: layer_norm(x, w["norms"][name], block.norm_eps)
    for row in range(2):
        live = np.ones(LENGTH, bool)
        where, sure = (POSITIONS[row], SEGMENTS[row], live), np.ones((LENGTH, 1))
        y = norm(
            x[row] + attention_by_hand(w, x[row], x[row], where, flat(block), sure), "attention"
        )
        e = {name: leaf[0] for name, leaf in w["experts"].items()}
        y = norm(y + gelu(y @ e["up"] + e["up_bias"]) @ e["down"] + e["down_bias"], "mlp")
        # A gate of one is divided by one and a millionth.
        assert error(apply(weights, x, block, None)[0][row], y) < 1e-5


def test_a_masked_token_takes_no_expert():
    weights, x = weights_of(BLOCK), states(0)
    found, _ = apply(weights, x, BLOCK)
    others = {s: w for s, w in weights_of(BLOCK, 1).items() if "router" in s or "experts" in s}
    changed, _ = apply({**weights, **others}, x, BLOCK)
    assert is_equal(found[~LIVE], changed[~LIVE])
    assert error(found[LIVE], changed[LIVE]) > 1e-2
    w = by_hand.pick(weights["norms"], ...)
    twice = layer_norm(layer_norm(x, w["attention"], 1e-5), w["mlp"], 1e-5)
    assert_close(found[~LIVE], twice[~LIVE])


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_relative_scores_and_their_gradients_are_those_of_the_plain_softmax(
    monkeypatch, is_accelerator
):
    if is_accelerator:  # what other machines than a CPU run, run here
        reference = lambda op, *arrays, backend, **static: op.reference(*arrays, **static)
        monkeypatch.setattr(Op, "__call__", reference)
    context = Context(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    normal = np.random.default_rng(0).normal
    query, relative = (jnp.asarray(normal(size=(2, LENGTH, 4, n)), jnp.float32) for n in (6, 5))
    key, value = jnp.asarray(normal(size=(2, 2, LENGTH, 2, 6)), jnp.float32)
    behind = POSITIONS[:, :, None] - POSITIONS[:, None]
    mask = (behind >= 0) & (SEGMENTS[:, :, None] == SEGMENTS[:, None])

    def plain(query, key, value, relative):
        place = jnp.broadcast_to(np.clip(behind, 0, 4)[:, :, None], (2, LENGTH, 4, LENGTH))
        bias = jnp.take_along_axis(relative, place, -1).swapaxes(1, 2)
        return jax.nn.dot_product_attention(query, key, value, bias, mask[:, None])

    ours = lambda query, key, value, relative: attend(
        query, KeysValues(key, value), context, context, relative
    )

    def run(function):
        weigh = jnp.cos(jnp.arange(query.size)).reshape(query.shape)
        total = lambda *args: jnp.vdot(function(*args), weigh)
        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(query, key, value, relative)

    assert_close(run(ours), run(plain))
    none = attend(query, KeysValues(key, value), context, context)
    assert is_equal(ours(query, key, value, jnp.zeros_like(relative)), none)


def information_by_hand(p):
    """Returns H(expert | token) and H(expert) of probabilities [tokens E]."""
    mean = p.mean(0)
    return -(p * np.log(p)).sum(-1).mean(), -(mean * np.log(mean)).sum()


@pytest.mark.parametrize("sign", ["intended", "released"])
def test_the_loss_joins_all_uses_of_a_router(sign):
    mim = dict(mim_sign=sign, mim_weight=0.7)
    block = altered(BLOCK, **mim, **{f"attention_{name}": value for name, value in mim.items()})
    whole = small(fixed.Fixed(3), block=block)
    weights, tokens = draw(whole), text()
    aux = forward(weights, tokens, whole, "train")[1]
    w, seen = by_hand.step_weights(weights, whole.schedule, 0, 0), {name: [] for name in USES}
    for row in np.asarray(tokens):
        x = np.asarray(weights["embed"]["table"], np.float64)[row]
        where = np.arange(LENGTH), np.ones(LENGTH), np.ones(LENGTH, bool)
        for _ in range(3):
            x, routed = block_by_hand(w, x, x, where, block)
            for name, p in zip(USES, routed, strict=True):
                seen[name].append(p)
    parts = [information_by_hand(np.concatenate(seen[name])) for name in USES]
    factor = -1 if sign == "intended" else 1
    total = sum(conditional + factor * marginal for conditional, marginal in parts)
    # A difference of entropies: its error is of their size.
    found = aux.losses["mim"] + aux.losses["attention_mim"]
    assert abs(found - 0.7 * total) < tol(jnp.float32, 64) * np.sum(parts)
    assert_close(aux.metrics["router_entropy"], parts[1][1])


def test_sure_and_even_routing_gives_minus_log_of_the_experts():
    logits = jnp.asarray(200.0 * np.eye(4)[None], jnp.float32)  # each of 4 tokens has its expert
    used = jax.tree.map(
        lambda leaf: leaf[None], balance.usage(logits, logits.argmax(-1)[..., None])
    )
    loss = lambda sign: altered(BLOCK, mim_weight=1.0, mim_sign=sign).losses({"router": used})[0][
        "mim"
    ]
    np.testing.assert_allclose(loss("intended"), -math.log(4), rtol=1e-6)
    np.testing.assert_allclose(loss("released"), math.log(4), rtol=1e-6)


def test_halted_tokens_are_left_out_of_the_loss():
    config = small(stick_breaking.StickBreaking(3, threshold=0.6), recursions=3)
    weights = draw(config)
    once = small(fixed.Fixed(1), 1)
    gate = jax.tree.map(jnp.zeros_like, weights["depth"])
    gate = {**gate, "bias": gate["bias"] + 1.0, "out": gate["out"].at[:, 1].set(100.0)}
    aux = forward({**weights, "depth": gate}, text(), config)[1]
    assert np.all(aux.depth_used == 1)
    assert_close(
        aux.losses["mim"], forward({**weights, "depth": {}}, text(), once)[1].losses["mim"]
    )


def test_half_precision_routes_in_float32():
    x, wide = jnp.asarray(states(0), jnp.bfloat16), weights_of(BLOCK)
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide)
    mixed = {**rounded, **{slot: wide[slot] for slot in BLOCK.exact}}
    context = Context(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    run = jax.jit(lambda w: BLOCK.apply(w, x, context)[::2])
    y, report = run(mixed)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(report)} == {jnp.dtype("float32")}
    # A change of a router that bfloat16 would round away changes where tokens go.
    moved = jax.tree.map(lambda p: p * (1 + 2.0**-12), wide["router"])
    other = run({**mixed, "router": moved})[1]["router"]
    assert not is_equal(report["router"].probability, other.probability)


def parameters(config):
    """Returns the parameters of a model of one block that halts, in closed form."""
    b, v = flat(config.block), config.vocab_size
    d, width, e, f = b.embed_dim, b.num_heads * b.head_dim, b.num_attention_experts, b.num_experts
    routers = 2 * (d * d + d) + d * (e + f)
    attention = 2 * d * width + width * b.num_distances + 2 * e * d * width
    experts = f * (2 * d * b.expert_dim + b.expert_dim + d)
    tables = v * d if config.embed.is_tied else 2 * v * d + v
    return tables + routers + attention + experts + 4 * d + (d * d + 3 * d)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", None), ("logic", None), ("wmt", None), ("44m", 44.6), ("244m", 244.5)],
)
def test_presets_have_their_parameters(name, millions):
    run = config.load(f"sut:{name}", {})
    built = run.model.sized(run.model.vocab_size or 256)
    count = accounting.unique_parameters(built)
    assert count == parameters(built)
    assert millions is None or round(count / 1e6, 1) == millions


def test_experts_start_at_their_published_scales():
    found = params.init(BLOCK.specs(1), jax.random.key(0))
    bounds = {("experts", "up"): 16, ("experts", "down"): 8, ("attention_experts", "query"): 16}
    for (slot, name), inputs in bounds.items():
        size = np.abs(found[slot][name])
        assert 0.9 / inputs < size.max() <= 1 / inputs
    assert not found["relative"]["table"].any()
    bound = math.sqrt(3 / (16 + 8))
    assert 0.9 * bound < np.abs(found["attention"]["key"]).max() <= bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 7}, "top_k: got 7, takes 1 to the 6 of num_experts"),
        (
            {"attention_top_k": 0},
            "attention_top_k: got 0, takes 1 to the 5 of num_attention_experts",
        ),
        ({"num_distances": 0}, "num_distances: got 0"),
        ({"mim_weight": -1.0}, "mim_weight: got -1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        altered(BLOCK, **options)
    assert "\n" not in str(refused.value)
