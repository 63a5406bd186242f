"""Plans that share a block of experts, or of one MLP: WideNet's, the grouped one, ALBERT's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, kv
from recursia.architecture import Model
from recursia.depth import fixed
from recursia.layers.attention import Context
from recursia.sharing.remat import Remat
from tests.helpers import by_hand
from tests.helpers.blocks import altered, flat, published
from tests.helpers.by_hand import layer_norm
from tests.helpers.flops import assert_exact
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
    "widenet", embed_dim=16, num_heads=2, head_dim=4, num_experts=4, top_k=2, expert_dim=6
)
PRIVATE = (("norms", "recursion+block"),)


def build(block=BLOCK, steps=4, varies=PRIVATE, kv_sharing="own", vocab=VOCAB, **options):
    return Model(
        steps,
        block,
        fixed.Fixed(steps),
        sharing="cycle",
        varies=varies,
        kv=kv.Plan(kv_sharing),
        **options,
    ).sized(vocab)


def layer(w, x, where, block, source=None):
    """Returns a step's output, its (keys, values), its probabilities and its choices."""
    block = flat(block)
    h = layer_norm(x, w["norms"]["attention"], block.norm_eps)
    heads = lambda name: np.einsum("td,dnh->tnh", h, w["attention"][name])
    turned = lambda name: by_hand.rotate(heads(name), where[0], block.rope_base)
    source, query = source or (turned("key"), heads("value")), turned("query")
    mixed = by_hand.attend(query, *source, where, where)
    x = x + np.einsum("tnh,nhd->td", mixed, w["attention"]["out"])
    h = layer_norm(x, w["norms"]["experts"], block.norm_eps)
    p = np.exp(h @ w["router"])
    p /= p.sum(-1, keepdims=True)
    best = np.argsort(-p, axis=-1, kind="stable")[:, : block.top_k]
    places = (
        len(x) * block.top_k
        if block.capacity is None
        else math.ceil(block.capacity * len(x) * block.top_k / block.num_experts)
    )
    out, full = x.copy(), dict.fromkeys(range(block.num_experts), 0)
    for t in range(len(x)):
        for e in best[t]:
            full[e] += 1
            if full[e] <= places:
                z = by_hand.gelu(h[t] @ w["experts"]["up"][e])
                out[t] += p[t, e] * (z @ w["experts"]["down"][e])
    return out, source, p, best


def run(weights, tokens, config):
    """Returns logits [B T V], and all probabilities and choices of all steps and rows."""
    rows, seen = [], []
    for row in np.asarray(tokens):
        where = np.stack([np.arange(len(row)), np.ones(len(row))])
        table = np.asarray(weights["embed"]["table"], np.float64)
        x, made, plan = table[row], {}, config.schedule
        for r in range(plan.num_recursions):
            w, reads = by_hand.step_weights(weights, plan, r, 0), by_hand.keys_of(plan, r, 0, made)
            x, made[r], p, best = layer(w, x, where, config.block, reads)
            seen.append((p, best))
        x = layer_norm(x, by_hand.pick(weights["final_norm"], ...), config.block.norm_eps)
        rows.append(x @ table.T)
    return np.stack(rows), [np.concatenate(leaves) for leaves in zip(*seen, strict=True)]


@pytest.mark.parametrize(
    ("block", "kv_sharing"),
    [
        (BLOCK, "own"),
        (altered(BLOCK, capacity=0.75), "first_recursion"),
        (altered(BLOCK, num_experts=1, top_k=1), "own"),
    ],
    ids=["all places", "few places", "one expert"],
)
def test_it_is_the_equations(block, kv_sharing):
    config = build(block, kv_sharing=kv_sharing)
    weights, tokens = draw(config), text()
    logits, (p, best) = run(weights, tokens, config)
    for mode in ("eval", "train", "causal"):
        ours, aux = forward(weights, tokens, config, mode)
        assert_close(ours, logits, 256)
        share = np.bincount(best.reshape(-1), minlength=block.feedforward.num_experts) / best.size
        balance = 0.01 * block.feedforward.num_experts * (share * p.mean(0)).sum()
        assert abs(aux.losses["expert_balance"] - balance) < 1e-6


def test_steps_own_nothing_but_their_norms():
    count = lambda steps: accounting.unique_parameters(build(steps=steps))
    assert count(7) - count(3) == 4 * 2 * 2 * BLOCK.embed_dim


def test_equal_private_norms_are_one_norm():
    shared, private = build(varies=()), build()
    weights = draw(shared)
    core = {**weights["core"]}
    repeat = lambda p: jnp.broadcast_to(p, (4, *p.shape))
    core["norms"] = jax.tree.map(repeat, core["norms"])
    same = forward({**weights, "core": core}, text(), private)
    assert is_equal(forward(weights, text(), shared)[0], same[0])


def test_private_norms_send_one_vector_to_other_experts():
    norms = draw(build())["core"]["norms"]
    weights = jax.tree.map(lambda p: p[0], draw(build(varies=()))["core"])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, LENGTH, 16)), jnp.float32)
    where = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    context = Context(where, jnp.ones_like(where))

    def taken(step):
        own = jax.tree.map(lambda p: p[step, 0], norms)
        return BLOCK.apply({**weights, "norms": own}, x, context)[2]["router"].taken

    assert is_equal(taken(1), taken(1)) and not is_equal(taken(0), taken(1))


def test_a_token_without_a_place_keeps_what_attention_gave_it():
    block = altered(BLOCK, top_k=1, capacity=1.0)
    weights = jax.tree.map(lambda p: p[0], draw(build(block, varies=()))["core"])
    weights["router"] = jnp.zeros((16, 4))  # all alike: every token takes the first expert
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, LENGTH, 16)), jnp.float32)
    where = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    apply = lambda w: block.apply(w, x, Context(where, jnp.ones_like(where)))[0]
    y, nothing = (
        apply(weights),
        apply({**weights, "experts": jax.tree.map(jnp.zeros_like, weights["experts"])}),
    )
    places = LENGTH // 4
    assert is_equal(y[:, places:], nothing[:, places:])
    assert (np.abs(y - nothing)[:, :places].max(-1) > 1e-2).all()


@pytest.mark.parametrize("remat", ["none", "block"])
def test_flops_of_experts_with_few_places_are_exact(remat):
    block = altered(BLOCK, capacity=1.2)
    assert_exact(build(block, vocab=11), remat=Remat(remat))


def test_the_grouped_plan_shares_neighbours_attention_and_experts_alone():
    plan = config.load("widenet:tiny_grouped", {}).model.sized(VOCAB).schedule
    in_order = lambda slot: plan.by_recursion(slot).T.reshape(-1).tolist()
    assert plan.order == "sequence"
    for slot in ("attention", "experts"):
        assert in_order(slot) == [0, 0, 0, 0, 1, 1, 1, 1]
    for slot in ("norms", "router"):
        assert sorted(in_order(slot)) == list(range(8))


@pytest.mark.parametrize(("recursions", "groups"), [("8", 1), ("2", 4)])
def test_albert_shares_within_a_group_of_neighbours(recursions, groups):
    run = config.load("albert:tiny", {"model.depth.num_recursions": recursions})
    built = run.model.sized(VOCAB)
    for slot in ("attention", "mlp", "norms"):
        entries = built.schedule.by_recursion(slot).T.reshape(-1)
        assert entries.tolist() == [layer // (8 // groups) for layer in range(8)]
    block, e = flat(run.model.block), run.model.embed.factor_dim
    d, h = block.embed_dim, block.head_dim
    attention = 2 * d * h * (block.num_heads + block.num_kv_heads)
    each = attention + 3 * d * block.mlp_dim + 2 * d
    assert accounting.unique_parameters(built) == VOCAB * e + e * d + groups * each + d


def test_a_factorised_table_is_the_product_of_its_factors():
    built = config.load("albert:tiny", {}).model.sized(VOCAB)
    weights = draw(built)
    whole = dataclasses.replace(built, embed=dataclasses.replace(built.embed, factor_dim=0))
    product = {"table": weights["embed"]["table"] @ weights["embed"]["projection"]}
    logits = forward(weights, text(), built)[0]
    assert_close(logits, forward({**weights, "embed": product}, text(), whole)[0], 256)
    assert (
        error(
            logits, forward({**weights, "embed": {"table": 2 * product["table"]}}, text(), whole)[0]
        )
        > 0.1
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 5), ("capacity", 0.0), ("head_dim", 3), ("expert_dim", 0)],
)
def test_a_width_that_cannot_be_is_refused_in_one_line(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got {value}, takes [^\n]*$"):
        altered(BLOCK, **{field: value})
