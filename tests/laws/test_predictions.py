"""What a model shows of a text is what it computes: states, recursions, and why it took them."""

import functools

import jax
import numpy as np
import pytest

from recursia import prediction, sharding
from recursia.evaluate.shapes import Place
from tests.helpers.points import DEPTHS, RECURSIONS, point
from tests.helpers.tiny import LENGTH, assert_close, draw, forward, text

CONFIGS = {name: point(depth_=name) for name in DEPTHS}
TEXTS = [text(seed=1, batch=1)[0].tolist(), text(seed=2, batch=1)[0, :7].tolist()]


def place(mode="eval"):
    here = sharding.MeshConfig(data=2)
    mesh = sharding.make_mesh(here, jax.devices()[:2])
    return Place(mode, mesh, here.rules, LENGTH, 0)


@functools.cache
def predicted(name, mode="eval"):
    return prediction.predict(draw(CONFIGS[name]), CONFIGS[name], TEXTS, place(mode))


def by_top_k(found, policy):
    taken = np.zeros_like(found.is_taken)
    for row, count in enumerate(found.is_token.sum(1)):
        for r, share in enumerate(policy.shares):
            best = np.argsort(-np.nan_to_num(found.scores[r, row, :count], nan=-np.inf))
            taken[r, row, best[: int(share * count)]] = True
    return taken


def by_argmax(found, policy):
    return np.arange(RECURSIONS)[:, None, None] <= found.scores.argmax(0)


def by_exits(found, policy):
    stopped = np.cumsum(found.scores, axis=0) >= policy.exit_threshold
    return np.concatenate([np.ones_like(stopped[:1]), ~np.logical_or.accumulate(stopped)[:-1]])


# How the scores of a policy decide; None: it decides by none.
DECIDED = {
    "fixed": None,
    "nested": None,
    "recurrent": None,
    "expert_choice": by_top_k,
    "token_choice": by_argmax,
    "exit_gate": by_exits,
    "act": lambda found, policy: ~np.isnan(found.scores),
    "stick_breaking": lambda found, policy: found.scores >= 1 - policy.threshold,
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", DEPTHS)
def test_scores_say_which_recursions_a_token_takes(name):
    found, by = predicted(name), DECIDED.get(name)
    if by is None:
        assert found.scores is None
        return
    taken = by(found, CONFIGS[name].depth)
    assert np.array_equal(taken & found.is_token, found.is_taken)
    assert 1 < found.mean_depth < RECURSIONS  # or any rule would do
    if "tokens_kept" in found.metrics:
        kept = found.is_taken.sum((1, 2)) / found.is_token.sum()
        np.testing.assert_allclose(found.metrics["tokens_kept"], kept, rtol=1e-6)


def test_in_causal_mode_each_token_goes_on_by_its_own_score():
    found, policy = predicted("expert_choice", "causal"), CONFIGS["expert_choice"].depth
    goes = found.scores >= 0
    goes[0] = True  # the first recursion keeps all
    assert policy.shares[0] == 1
    assert np.array_equal(np.logical_and.accumulate(goes) & found.is_token, found.is_taken)
    assert not np.array_equal(found.depth_used, predicted("expert_choice").depth_used)


@pytest.mark.parametrize("name", DEPTHS)
def test_a_text_is_read_as_by_itself(name):
    found, config = predicted(name), CONFIGS[name]
    # Of the text with padding, where a policy gathers tokens; padding is a law of its own.
    row = int(name == "expert_choice")
    tokens, count = np.array(TEXTS[row]), len(TEXTS[row])
    logits, aux = forward(draw(config), tokens[None], config)
    assert np.array_equal(found.tokens[row, :count], tokens)
    assert_close(found.logits[row, :count], logits[0], n=512)
    assert_close(found.states[:, row, :count], aux.states[:, 0], n=512)
    assert np.array_equal(found.depth_used[row, :count], aux.depth_used[0])
    chosen = logits[0, np.arange(count - 1), tokens[1:]]
    nats = jax.nn.logsumexp(logits[0], axis=-1)[:-1] - chosen
    assert_close(found.nats[row, : count - 1], nats, n=512)
    assert not found.nats[row, count - 1 :].any()


@pytest.mark.parametrize("name", ["fixed", "expert_choice"])
def test_the_last_state_through_the_lens_gives_the_logits(name):
    found = predicted(name)
    logits = prediction.lens(draw(CONFIGS[name]), CONFIGS[name], TEXTS, place())
    assert logits.shape == (RECURSIONS, *found.logits.shape)
    assert_close(logits[-1][found.is_token], found.logits[found.is_token], n=512)


@pytest.mark.parametrize("name", DEPTHS)
def test_training_computes_no_scores(name):
    train = functools.partial(forward, config=CONFIGS[name], mode="train")
    assert jax.eval_shape(train, draw(CONFIGS[name]), text())[1].scores is None
