"""Adaptive computation time: who halts when, and what a token's states weigh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import injection, kv, model
from recursia.architecture import Model
from recursia.depth import act, fixed
from recursia.embeddings.table import Table
from tests.helpers import universal_by_hand as by_hand
from tests.helpers.tiny import VOCAB, assert_close, draw, error, forward, gradient, is_equal, text
from tests.helpers.universal_by_hand import FORMS

MOST = 5


def tiny(form="released", layers=MOST, sharing="cycle", kv_sharing="own", dtype="float32", **depth):
    """Returns a model that halts; options are the policy's."""
    block, told = FORMS[form]
    return Model(
        layers,
        block,
        act.Act(MOST, **depth),
        sharing=sharing,
        kv=kv.Plan(kv_sharing),
        inject=told,
        embed=Table(scale=5.0),
        dtype=dtype,
    ).sized(VOCAB)


def biased(of, bias, weight=None):
    """Returns drawn parameters whose halting unit has this bias, and this weight if given."""
    params = draw(of)
    unit = params["depth"]["halt"]
    unit = {"weight": unit["weight"] if weight is None else weight, "bias": jnp.float32(bias)}
    return {**params, "depth": {"halt": unit}}


def constant(of, bias):
    """Returns drawn parameters under which every probability is sigmoid(bias)."""
    return biased(of, bias, jnp.zeros(of.block.embed_dim))


def drawn(of):
    """Returns parameters under which tokens halt at different recursions, some never."""
    return biased(of, 0.4)


def log_odds(p):
    """Returns the bias whose sigmoid is `p`."""
    return float(np.log(p / (1 - p)))


@functools.cache
def by_loop(of):
    """Returns the reference's logits and reports on the text and parameters of these tests."""
    return by_hand.forward(drawn(of), text(), of)


def gathered(reports, name):
    return np.stack([report[name] for report in reports])


@pytest.mark.parametrize("update", ["basic", "accumulated"])
@pytest.mark.parametrize("halted_state", ["live", "copied"])
@pytest.mark.parametrize(
    ("form", "layers", "kv_sharing"),
    [("released", MOST, "own"), ("paper", MOST, "own"), ("released", 2 * MOST, "first_recursion")],
)
def test_halting_is_the_published_loop(form, layers, kv_sharing, update, halted_state):
    of = tiny(form, layers, kv_sharing=kv_sharing, update=update, halted_state=halted_state)
    by_logits, reports = by_loop(of)
    steps, left = (gathered(reports, name) for name in ("n", "left"))
    assert len(set(steps.ravel())) > 1 and (left > 0).any()  # else the text tells little
    for mode in ("train", "eval", "causal"):
        logits, aux = forward(drawn(of), text(), of, mode)
        assert_close(logits, by_logits, n=256)
        assert np.array_equal(aux.depth_used, steps)
        wanted = of.depth.act_loss_weight * (steps + left).mean()
        assert_close(aux.losses["ponder"], wanted)
        assert_close(aux.metrics["ponder_remainder"], left.mean())
        assert_close(aux.metrics["ponder_steps"], steps.mean())
        halted = (gathered(reports, "h") > 0.999).mean()
        assert_close(aux.metrics["halted"], halted)
        if mode != "causal":
            for row, report in enumerate(reports):  # the loop by hand ends with the last token
                assert_close(aux.states[: len(report["states"]), row], report["states"], n=256)


@pytest.mark.parametrize("halted_state", ["live", "copied"])
def test_some_tokens_halt_and_some_never_do(halted_state):
    steps, left, total = (
        gathered(by_loop(tiny(halted_state=halted_state))[1], n) for n in ("n", "left", "h")
    )
    assert (steps >= 1).all() and (steps <= MOST).all() and (left >= 0).all() and (left <= 1).all()
    assert ((left == 0) == (total < 0.99)).all()
    assert (steps[left == 0] == MOST).all()
    assert (left == 0).any() and (steps < MOST).any()


@pytest.mark.parametrize(
    ("update", "wanted"), [("basic", (0.27, 0.36, 0.10)), ("accumulated", (0.5, 0.4, 0.1))]
)
def test_states_weigh_what_the_table_says(update, wanted):
    """p = (.5, .4, ...) halts at the third step, whose u is the remainder .1."""
    walk = HandMadeCore([0.5, 0.4, 0.7, 0.6, 0.3])
    x, aux = walk.run(act.Act(MOST, update=update))
    np.testing.assert_allclose(x[0, 0], (*wanted, 0, 0), atol=1e-6)
    assert aux.depth_used[0, 0] == 3
    halting = (0.5, 0.4, 0.7, np.nan, np.nan)
    np.testing.assert_allclose(aux.scores[:, 0, 0], halting, rtol=1e-6)
    np.testing.assert_allclose(aux.losses["ponder"], 0.01 * 3.1, rtol=1e-6)


@pytest.mark.parametrize("update", ["basic", "accumulated"])
def test_a_token_that_never_halts_weighs_its_states_by_their_probabilities(update):
    p = np.array([0.1, 0.2, 0.1, 0.2, 0.1])
    x, aux = HandMadeCore(p).run(act.Act(MOST, update=update))
    later = np.array([np.prod(1 - p[t + 1 :]) for t in range(MOST)])
    np.testing.assert_allclose(x[0, 0], p * later if update == "basic" else p, atol=1e-6)
    assert aux.depth_used[0, 0] == MOST
    np.testing.assert_allclose(aux.losses["ponder"], 0.01 * MOST, rtol=1e-6)
    assert aux.metrics["halted"] == 0


@dataclasses.dataclass(frozen=True)
class HandMade:
    """A recursion t that gives the unit vector e_t, and halts with the probability given."""

    t: int
    log_odds: jax.Array

    def enter(self, x, context):
        return jnp.full((1, 1, MOST), self.log_odds / MOST)  # w is all ones

    def run(self, x, context):
        return jnp.eye(MOST)[self.t][None, None], None


class HandMadeCore:
    """A core of such recursions."""

    def __init__(self, p):
        self.p = [jnp.float32(log_odds(each)) for each in p]

    def loop(self, step, carry):
        outs = []
        for t in range(MOST):
            carry, out, _ = step(carry, HandMade(t, self.p[t]), None)
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs), {}, ()

    def run(self, config):
        unit = {"halt": {"weight": jnp.ones(MOST), "bias": jnp.float32(0)}}
        where = model.Context(jnp.zeros((1, 1), int), jnp.zeros((1, 1), int))
        return config.run(self, unit, jnp.zeros((1, 1, MOST)), where, model.Call("eval"))


def test_accumulated_shares_of_a_halted_token_sum_to_one():
    _, reports = by_loop(tiny(update="accumulated"))
    for report in reports:
        halted = report["left"] > 0
        np.testing.assert_allclose(report["shares"].sum(0)[halted], 1, atol=1e-12)
    # The library's: every state the same vector of ones, so that the output is the sum of shares.
    for p, total in (([0.3, 0.4, 0.5, 0.1, 0.1], 1), ([0.9] * MOST, 1), ([0.1] * MOST, 0.5)):
        x, _ = HandMadeCore(p).run(act.Act(MOST, update="accumulated"))
        np.testing.assert_allclose(x[0, 0].sum(), total, atol=1e-6)
        assert HandMadeCore(p).run(act.Act(MOST))[0][0, 0].sum() <= 1


@pytest.mark.parametrize("update", ["basic", "accumulated"])
@pytest.mark.parametrize("halted_state", ["live", "copied"])
def test_certain_halting_is_one_recursion_and_none_gives_nothing(update, halted_state):
    of = tiny(update=update, halted_state=halted_state)
    same = dict(sharing="cycle", inject=of.inject, embed=of.embed)
    once = Model(1, of.block, fixed.Fixed(1), **same).sized(VOCAB)
    params = constant(of, 20)
    first = {**params, "depth": {}, "inject": {"step": params["inject"]["step"][:1]}}
    logits, aux = forward(params, text(), of)
    assert_close(logits, forward(first, text(), once)[0])
    assert np.all(aux.depth_used == 1)
    np.testing.assert_allclose(aux.losses["ponder"], 0.02, rtol=1e-6)
    _, aux = forward(constant(of, -120), text(), of)
    assert np.all(aux.depth_used == MOST) and np.all(aux.states == 0)
    np.testing.assert_allclose(aux.losses["ponder"], 0.01 * MOST, rtol=1e-6)


def test_the_initial_bias_halts_after_two_recursions_and_minus_three_never():
    for bias, steps in ((1.0, 2), (-3.0, MOST)):
        of = tiny(halt_bias_init=bias)
        aux = forward(model.init(of, jax.random.key(0)), text(), of)[1]
        assert np.all(aux.depth_used == steps)


def test_a_halted_tokens_output_stays_as_it_is_bit_for_bit():
    aux = forward(drawn(tiny()), text(), tiny())[1]
    for row, token in np.ndindex(aux.depth_used.shape):
        for t in range(1, MOST):
            is_same = is_equal(aux.states[t, row, token], aux.states[t - 1, row, token])
            assert is_same == (t >= aux.depth_used[row, token])


def test_what_halted_tokens_become_is_seen_by_others():
    live, copied = (by_loop(tiny(halted_state=each)) for each in ("live", "copied"))
    assert error(live[0], copied[0]) > 1e-3
    first = gathered(live[1], "n")[:, 0], gathered(copied[1], "n")[:, 0]
    assert np.array_equal(*first)  # alone, the first token of a row has nobody to see
    assert_close(live[0][:, 0], copied[0][:, 0])


@pytest.mark.parametrize("kv_sharing", ["own", "first_recursion"])
def test_causal_mode_stops_when_no_wanted_token_goes_on(kv_sharing):
    """A recursion whose weights are no numbers spoils what runs through it."""
    of = tiny(sharing="none", kv_sharing=kv_sharing)
    params = drawn(of)
    depth = np.asarray(forward(params, text(), of)[1].depth_used)
    apply = jax.jit(
        lambda params, wanted: (
            model.apply(params, text(), of, mode="causal", wanted=jnp.asarray(wanted)).hidden
        )
    )
    everyone = apply(params, np.ones(depth.shape, bool))
    for most in sorted(set(depth[depth < MOST].ravel()))[:2]:
        wanted = depth <= most
        spoil = lambda leaf, most=most: leaf.at[most:].set(jnp.nan)
        spoilt = {**params, "core": jax.tree.map(spoil, params["core"])}
        assert_close(apply(spoilt, wanted)[wanted], everyone[wanted])
        one_more = {
            **params,
            "core": jax.tree.map(lambda p, m=most: p.at[m - 1].set(jnp.nan), params["core"]),
        }
        assert np.isnan(apply(one_more, wanted)[wanted]).any()


def test_depth_is_where_the_walk_is_cut():
    of = tiny()
    params = drawn(of)
    states = forward(params, text(), of)[1].states
    for depth in (1, 3):
        shallow, first = model.at_depth(of, params, depth)
        aux = forward(first, text(), shallow)[1]
        assert_close(aux.states, states[:depth])
        assert np.all(aux.depth_used <= depth)
    deep = dataclasses.replace(of, inject=injection.Injection(position="halves"))
    params = {**params, "inject": {}}
    longer, params = model.at_depth(deep, params, MOST + 3)
    assert_close(
        forward(params, text(), longer)[0], by_hand.forward(params, text(), longer)[0], n=256
    )


def test_tokens_that_never_halt_give_the_halting_unit_no_ponder_gradient():
    of = tiny(act_loss_weight=1.0)
    ponder = lambda params: forward(params, text(), of, "train")[1].losses["ponder"]
    unit = lambda params: jax.grad(ponder)(params)["depth"]["halt"]
    never = unit(constant(of, -3))
    assert never["bias"] == 0 and np.all(never["weight"] == 0)
    # p = .4 halts at the third step: R = 1 - 2p, whose derivative is -2 p (1 - p).
    np.testing.assert_allclose(unit(constant(of, log_odds(0.4)))["bias"], -0.48, rtol=1e-5)
    through_states = jax.grad(lambda params: forward(params, text(), of, "train")[0].std())
    assert through_states(constant(of, -3))["depth"]["halt"]["bias"] != 0


@pytest.mark.slow
def test_bfloat16_keeps_float32_halting():
    of = tiny(dtype="bfloat16")
    params = drawn(of)
    nats, exact = (gradient(params, text(), config)[0] for config in (of, tiny()))
    assert abs(exact - nats) < 0.05 * exact
    # 0.99 and less in float32 is 0.99 and more in bfloat16: rounded sums would halt a step early.
    p = 0.3295
    assert forward(constant(of, log_odds(p)), text(), of)[1].depth_used.max() == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"epsilon": 0.0}, "epsilon: got 0"),
        ({"epsilon": 1.0}, "epsilon: got 1"),
        ({"act_loss_weight": -0.1}, "act_loss_weight: got -0.1"),
        ({"sharing": "sequence"}, "act needs the state after each recursion"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, why):
    with pytest.raises(ValueError, match=why) as refusal:
        tiny(**options)
    assert "\n" not in str(refusal.value)
