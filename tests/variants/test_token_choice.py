"""Token choice is its published formula, computed again by hand on each row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model
from recursia.depth import token_choice
from recursia.layers.linear import dot
from tests.helpers import tiny, trainers
from tests.helpers.tiny import BLOCK, assert_close, draw, forward, is_equal, loss, text
from tests.helpers.token_choice_by_hand import balance, by_loop

KV = ("own", "first_recursion")
PLANS = (*KV, "groups/3", "upper_half", ((0, 0), (2, 3), (4, 3)))
MODES = ("train", "eval", "causal")


def routed(
    sharing="cycle", recursions=3, blocks=2, kv="own", varies=(), dtype="float32", **options
):
    """Returns a tiny model whose tokens choose their depth; options are the policy's."""
    fixed = tiny.tiny("fixed", sharing, recursions, blocks, varies, kv, dtype=dtype)
    return dataclasses.replace(fixed, depth=token_choice.TokenChoice(recursions, **options))


def assert_is_by_hand(config, mode="eval", **where):
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config, mode, **where)
    by_logits, routes, scores, depths = by_loop(params, tokens, config, **where)
    assert len(set(depths.flat)) > 1
    assert np.array_equal(aux.depth_used, depths)
    assert_close(logits, by_logits)
    assert_close(aux.metrics["router_balance"], balance(scores, depths))
    z = np.log(np.exp(routes).sum(-1)) ** 2
    assert_close(aux.metrics["router_z"], z.mean())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gating", ["weighted", "additive", "delta", "replace"])
def test_every_gating_and_score_is_its_formula(gating, score):
    assert_is_by_hand(routed(blocks=1, gating=gating, score=score, temperature=1.5))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_router_of_two_layers_is_its_formula(score):
    assert_is_by_hand(routed(blocks=1, router="mlp", score=score, alpha=0.7))


@pytest.mark.parametrize("kv", PLANS)
@pytest.mark.parametrize(
    ("sharing", "mode"), [("middle_cycle", mode) for mode in MODES] + [("none", "eval")]
)
def test_every_walk_is_its_formula_in_every_mode(sharing, mode, kv):
    assert_is_by_hand(routed(sharing, kv=kv), mode)


def test_attention_private_to_each_recursion_is_its_formula():
    assert_is_by_hand(routed(varies=(("attention", "recursion+block"),), recursions=2))


def test_a_token_that_is_done_stays_as_it_is_bit_for_bit():
    config = routed()
    params = draw(config)
    aux = forward(params, text(), config)[1]
    for b, t in np.ndindex(*aux.depth_used.shape):
        after = aux.states[int(aux.depth_used[b, t]) - 1 :, b, t]
        assert is_equal(after, jnp.broadcast_to(after[0], after.shape))


@pytest.mark.parametrize("kv", KV)
def test_while_all_go_to_the_end_the_result_is_the_gated_stack(kv):
    config = routed(kv=kv, full_depth_steps=3)
    params, tokens = draw(config), text()
    full = np.full(tokens.shape, 3)
    forced, free = (by_loop(params, tokens, config, depths=depths) for depths in (full, None))
    for at, expected in ((0, forced), (2, forced), (3, free)):
        logits, aux = forward(params, tokens, config, "train", step=jnp.int32(at))
        assert_close(logits, expected[0])
        assert np.array_equal(aux.depth_used, expected[-1])
    assert_close(forward(params, tokens, config, "eval", step=jnp.int32(0))[0], free[0])
    with pytest.raises(ValueError, match="step"):
        forward(params, tokens, config, "train")
    assert config.at_step(2) == config
    assert config.at_step(3) == routed(kv=kv)


def test_a_shallow_token_is_not_seen_in_deeper_recursions():
    config = routed(recursions=2, blocks=1)
    params, tokens = draw(config), text()
    depth = np.asarray(forward(params, tokens, config)[1].depth_used)
    row, last = next((b, t) for b, t in np.argwhere(depth == 2) if 1 in depth[b, :t])
    blind = routed(recursions=2, blocks=1, full_depth_steps=1)
    all_deep = forward(params, tokens, blind, "train", step=jnp.int32(0))[0]
    assert tiny.error(forward(params, tokens, config)[0][row, last], all_deep[row, last]) > 1e-4


@pytest.mark.parametrize("kv", KV)
def test_what_no_wanted_token_needs_is_not_computed(kv):
    config = routed(kv=kv, varies=(("mlp", "recursion+block"),))
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config)
    wanted = aux.depth_used < 3
    assert 0 < wanted.sum() < wanted.size
    broken = jax.tree.map(lambda bank: bank.at[4:].set(jnp.nan), params["core"]["mlp"])
    params = {**params, "core": {**params["core"], "mlp": broken}}
    out = model.apply(params, tokens, config, mode="causal", wanted=wanted)
    assert_close(model.logits(params, out.hidden, config)[wanted], logits[wanted])
    assert not np.isfinite(forward(params, tokens, config)[0]).all()


def test_losses_are_weighted_and_only_those_asked_for():
    params, tokens = draw(routed(balancing="loss_free")), text()
    losses = lambda **options: forward(params, tokens, routed(**options))[1].losses
    aux = forward(params, tokens, routed())[1]
    both = losses(balance_weight=0.3, z_loss_weight=0.2)
    assert_close(both["router_balance"], 0.3 * np.asarray(aux.metrics["router_balance"]))
    assert_close(both["router_z"], 0.2 * np.asarray(aux.metrics["router_z"]))
    assert set(losses()) == {"router_balance"}
    assert losses(balancing="none") == losses(balancing="loss_free") == {}


def test_the_balancing_loss_moves_mean_scores_and_not_the_choice():
    config = routed(balance_weight=1.0)
    params, tokens = draw(config), text()
    share = forward(params, tokens, config)[1].metrics["depth_share"]
    embedded = params["embed"]["table"][tokens]

    def by_formula(out):
        score = jax.nn.softmax(dot(embedded, out, "d,dr->r"))
        return 3 * (score.mean((0, 1)) * share).sum()

    def ours(out):
        changed = {**params, "depth": {"router": {"out": out}}}
        return forward(changed, tokens, config)[1].losses["router_balance"]

    out = params["depth"]["router"]["out"]
    assert_close(jax.grad(ours)(out), jax.grad(by_formula)(out))


def test_a_bias_chooses_and_is_not_weighed():
    config = routed(balancing="loss_free")
    params, tokens = draw(config), text()
    for bias in ((9.0, 0.0, 0.0), (0.0, 0.0, 9.0), (0.0, 0.3, 0.0)):
        params["depth"]["bias"] = jnp.array(bias)
        logits, aux = forward(params, tokens, config)
        by_logits, *_, depths = by_loop(params, tokens, config)
        assert_close(logits, by_logits)
        assert np.array_equal(aux.depth_used, depths)
    assert not np.asarray(jax.grad(loss)(params, tokens, config)["depth"]["bias"]).any()


@pytest.mark.slow
def test_an_update_moves_each_bias_towards_an_even_share_and_nothing_else_does():
    how = dict(balancing="loss_free", bias_rate=0.25, full_depth_steps=1)
    made = config.load("mor:tiny_token", {}).model
    depth = token_choice.TokenChoice(3, **how)
    trainer = trainers.of(dataclasses.replace(made, num_layers=5, block=BLOCK, depth=depth))
    state, batch, want = trainer.init(), trainers.batch(), np.zeros(3)
    for at in range(3):
        state, metrics = trainer.step_function(at)(state, trainer.put(batch))
        share = np.asarray(metrics["depth_share"])
        assert abs(share.sum() - 1) < 1e-6 and np.ptp(share) > 0
        if at:  # biases wait until tokens choose
            want = want + 0.25 * np.sign(np.float32(share.mean()) - share)
        assert np.array_equal(state.params["depth"]["bias"], want.astype(np.float32))


def test_biases_even_out_a_router_that_prefers_one_depth():
    policy = token_choice.TokenChoice(3, balancing="loss_free", bias_rate=0.01)
    lean = np.random.default_rng(0).normal(size=(512, 3)) + np.array([2.0, 0.0, -1.0])
    scores = np.exp(lean) / np.exp(lean).sum(-1, keepdims=True)
    params, shares = {"bias": jnp.zeros(3)}, []
    for _ in range(200):
        depth = (scores + params["bias"]).argmax(-1)
        shares.append(jnp.bincount(depth, length=3) / len(scores))
        params = policy.after_step(params, {"depth_share": shares[-1]})
    assert np.ptp(shares[0]) > 0.7 and np.ptp(shares[-1]) < 0.1
    other = dataclasses.replace(policy, balancing="loss")
    assert other.after_step({}, {"depth_share": shares[0]}) == {}


def test_scores_are_float32_in_bfloat16():
    config = routed(dtype="bfloat16", z_loss_weight=0.1)
    params, tokens = draw(config), text()
    out = model.apply(params, tokens, config, mode="train")
    assert out.hidden.dtype == jnp.bfloat16
    said = jax.tree.leaves((out.aux.losses, out.aux.metrics))
    assert {leaf.dtype for leaf in said} == {jnp.dtype("float32")}
    x = params["embed"]["table"][tokens].astype(jnp.bfloat16).astype(jnp.float32)
    exact = jax.nn.softmax(dot(x, params["depth"]["router"]["out"], "d,dr->r"))
    assert_close(out.aux.metrics["depth_score"], exact.mean((0, 1)))


def test_a_pass_computes_every_token_and_needs_an_even_share_of_them():
    made = routed("middle_cycle")
    passes = made.depth.passes(made.schedule, 12)
    assert [(p.queries, p.needed, p.scored) for p in passes] == [
        (12, 12, 12),
        (12, 8, 0),
        (12, 4, 0),
    ]


def test_another_depth_and_a_sequence_are_refused_in_one_line():
    made = routed()
    params = draw(made)
    assert model.at_depth(made, params, 3)[0] == made
    with pytest.raises(ValueError, match="depth 2: token_choice") as refusal:
        model.at_depth(made, params, 2)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="sequence"):
        routed("sequence")
    for name in ("temperature", "balance_weight", "bias_rate", "full_depth_steps"):
        with pytest.raises(ValueError, match=name):
            token_choice.TokenChoice(3, **{name: -1})


def test_parameters_are_one_router_for_all_depths():
    plain = accounting.unique_parameters(tiny.tiny("fixed"))
    for options, more in (
        ({}, 3 * 16),
        ({"balancing": "loss_free"}, 3 * 16 + 3),
        ({"router": "mlp"}, 16 * 32 + 32 * 3),
    ):
        made = routed(**options)
        assert accounting.unique_parameters(made) == plain + more
        assert accounting.applied_parameters(made) > plain + more
