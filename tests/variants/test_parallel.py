"""Parallel copies of a model: its equation, and what copies have in common."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, cache, config, model
from recursia.depth.exit_gate import ExitGate
from recursia.generate import slots
from recursia.kv import Plan
from recursia.parallel import Parallel
from recursia.params import abstract, count
from recursia.sharing.remat import Remat
from tests.helpers import by_hand, flops, points, slow
from tests.helpers.refusals import refused
from tests.helpers.tiny import (
    BATCH,
    BLOCK,
    LENGTH,
    assert_close,
    draw,
    error,
    forward,
    is_equal,
    text,
    tiny,
)

COPIES, PREFIX, SMOOTHING = 3, 5, 0.1
NARROW = Parallel(num_copies=COPIES, prefix_tokens=PREFIX, smoothing=SMOOTHING)


def build(parallel=NARROW, **options):
    return dataclasses.replace(tiny(recursions=2, **options), parallel=parallel)


MADE = build()


@pytest.fixture(scope="module")
def drawn():
    return draw(MADE)


def shares_of(params, tokens):
    """Returns the copies' states before the average [B P T D], and their weights [B T P]."""
    states = forward(params, tokens, MADE)[1].states
    scale = np.asarray(params["final_norm"])
    rows = by_hand.norm(np.asarray(MADE.parallel.split(states[-1])), scale, BLOCK.norm_eps)
    shares = MADE.parallel.shares(params["parallel"], jnp.asarray(rows, jnp.float32))
    return rows.reshape(BATCH, COPIES, LENGTH, -1), shares


def test_a_forward_pass_is_its_equation(drawn):
    params, plan = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn), MADE.schedule
    where = np.stack([np.arange(LENGTH), np.zeros(LENGTH)])
    there = np.concatenate([[[-1] * PREFIX, [0] * PREFIX], where], 1)  # positions start at 0

    def copy(tokens, number):
        x = params["embed"]["table"][tokens]
        for recursion, k in np.ndindex(plan.num_recursions, plan.num_blocks):
            w = by_hand.step_weights(params, plan, recursion, k)
            h = by_hand.norm(x, w["norms"]["attention"], BLOCK.norm_eps)
            heads = lambda name, h=h, w=w: np.einsum("td,dnh->tnh", h, w["attention"][name])
            key = by_hand.rotate(heads("key"), where[0], 10_000.0)
            made = {"key": key, "value": heads("value")}
            key, value = (np.concatenate([w["prefix"][n][number], made[n]]) for n in made)
            x, _ = by_hand.block(w, x, where, BLOCK, (key, value, there))
        return by_hand.norm(x, params["final_norm"], BLOCK.norm_eps)

    w = params["parallel"]
    for row, tokens in enumerate(np.asarray(text())):
        states = np.stack([copy(tokens, number) for number in range(COPIES)])
        hidden = np.einsum("ptd,pde->te", states, w["hidden"]) + w["hidden_bias"]
        score = np.exp(hidden * by_hand.sigmoid(hidden) @ w["score"] + w["score_bias"])
        shares = score / score.sum(-1, keepdims=True) * (1 - SMOOTHING) + SMOOTHING / COPIES
        hand = np.einsum("tp,ptd->td", shares, states) @ params["embed"]["table"].T
        assert_close(forward(drawn, text(), MADE)[0][row], hand, n=1024)


def test_one_copy_is_the_model_itself():
    plain, one = tiny(recursions=2), build(Parallel(num_copies=1))
    assert one.schedule == plain.schedule
    assert jax.tree.structure(model.specs(one)) == jax.tree.structure(model.specs(plain))
    trace = lambda made: jax.make_jaxpr(lambda p, t: model.apply(p, t, made, mode="eval").hidden)
    assert str(trace(one)(draw(plain), text())) == str(trace(plain)(draw(plain), text()))


def test_copies_of_one_prefix_are_one_model(drawn):
    same = jax.tree.map(lambda leaf: leaf[:, :1].repeat(COPIES, 1), drawn["core"]["prefix"])
    params = {**drawn, "core": {**drawn["core"], "prefix": same}}
    rows, _ = shares_of(params, text())
    assert is_equal(rows[:, 0], rows[:, 1]) and is_equal(rows[:, 0], rows[:, 2])
    others = {**params, "parallel": jax.tree.map(lambda leaf: -leaf, params["parallel"])}
    assert_close(forward(params, text(), MADE)[0], forward(others, text(), MADE)[0])


def test_copies_in_another_order_have_their_weights_in_that_order(drawn):
    order, w = np.array([2, 0, 1]), drawn["parallel"]
    prefix = jax.tree.map(lambda leaf: leaf[:, order], drawn["core"]["prefix"])
    turned = {name: leaf[..., order] for name, leaf in w.items() if name.startswith("score")}
    own = {**w, **turned, "hidden": w["hidden"][order]}
    params = {**drawn, "core": {**drawn["core"], "prefix": prefix}, "parallel": own}
    (rows, shares), (ours, weights) = shares_of(drawn, text()), shares_of(params, text())
    assert error(shares[..., 0], shares[..., 1]) > 0.1
    assert_close(ours, rows[:, order])
    assert_close(weights, np.asarray(shares)[..., order])
    assert_close(forward(params, text(), MADE)[0], forward(drawn, text(), MADE)[0])


def test_states_of_a_recursion_are_read_as_the_last(drawn):
    logits, aux = forward(drawn, text(), MADE)
    assert aux.states.shape == (2, BATCH, LENGTH, COPIES * BLOCK.embed_dim)
    assert aux.depth_used.shape == (BATCH, LENGTH)
    read = model.read(drawn, aux.states[-1], MADE)
    assert_close(model.logits(drawn, read, MADE), logits)


def test_costs_are_those_of_all_copies():
    one, d = tiny(recursions=2), BLOCK.embed_dim
    prefixes = 2 * 4 * COPIES * PREFIX * BLOCK.mixer.key_width  # keys and values of four steps
    average = COPIES * d * d + d + d * COPIES + COPIES
    assert count(model.specs(MADE)) == count(model.specs(one)) + prefixes + average
    assert accounting.cache_bytes_per_token(MADE, 8) == COPIES * (
        accounting.cache_bytes_per_token(one, 8)
    )
    assert cache.empty(MADE, BATCH, 8).num_bytes == COPIES * cache.empty(one, BATCH, 8).num_bytes
    head = 2 * d * one.vocab_size
    scored = 4 * 4 * BLOCK.mixer.query_width * PREFIX  # of four steps, with keys and values
    core = accounting.forward_flops(one, 8) / 8 - head + scored
    mixed = 2 * COPIES * d * (d + 1)
    assert accounting.forward_flops(MADE, 8) == 8 * (COPIES * core + mixed + head)


@pytest.mark.parametrize("unit", ["none", slow("block"), slow("recursion")])
def test_flops_are_those_of_the_traced_program(unit):
    parallel = Parallel(num_copies=2, prefix_tokens=3)
    flops.assert_exact(flops.tiny(parallel=parallel), remat=Remat(unit))


def test_decoding_with_caches_is_the_forward_pass():
    made = dataclasses.replace(tiny(recursions=1, blocks=1), parallel=NARROW)
    drawn, parts = draw(made), []
    params, held = cache.unstack(drawn, made), cache.empty(made, BATCH, LENGTH)
    run = jax.jit(model.extend, static_argnums=2)
    for part in np.split(np.arange(LENGTH), 3):  # of four tokens: one program
        where = {"positions": np.tile(part, (BATCH, 1)), "segment_ids": np.ones((BATCH, 4), int)}
        hidden, held = run(params, text()[:, part], made, held, **where)
        parts.append(model.logits(drawn, hidden, made))
    assert_close(np.concatenate(parts, 1), forward(drawn, text(), made, "causal")[0])


def test_prefixes_are_private_to_steps_unless_shared():
    assert MADE.schedule.size("prefix") == 4
    shared = dataclasses.replace(MADE, varies=(("prefix", "block"),))
    assert shared.schedule.size("prefix") == 2
    at_one, cut = model.at_depth(MADE, draw(MADE), 1)
    assert at_one.parallel == NARROW and len(cut["core"]["prefix"]["key"]) == 2


def test_routers_do_not_report_the_tokens_of_copies():
    routed = points.point("pre_norm", feedforward="glu_moe", copies="two copies")
    how = {"mode": "eval", "is_by_token": True}
    run = lambda params, tokens: model.apply(params, tokens, routed, **how)
    out = jax.eval_shape(run, abstract(model.specs(routed)), text())
    assert out.aux.report == {} and out.hidden.shape[:2] == (BATCH, LENGTH)


def test_what_does_not_go_with_copies_is_refused():
    with refused(ValueError, "parallel.num_copies", "exit_gate", "one depth"):
        dataclasses.replace(MADE, depth=ExitGate(2))
    with refused(ValueError, "parallel.num_copies", "replay"):
        dataclasses.replace(MADE, kv=Plan("first_recursion", reads="queries_keys"))
    assert slots.refusal(MADE).startswith("parallel.num_copies")
    for field, value in (("num_copies", 0), ("prefix_tokens", 0), ("smoothing", 1.5)):
        with refused(ValueError, field, value):
            Parallel(**{field: value})
    teaches = {"distill.teacher": "runs/a", "distill.layers": "1"}
    with refused(Exception, "distill.layers", "2 copies"):
        config.load("parscale:tiny", teaches)
