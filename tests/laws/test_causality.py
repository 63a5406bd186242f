"""Changing tokens after t leaves the logits up to t as they are, bit for bit, or the model says so.

By perturbation, for a gradient cannot see a choice among all tokens of a row.
"""

import jax.numpy as jnp
import pytest

from tests.helpers.sight import is_free_of_the_future
from tests.helpers.tiny import VOCAB, draw, forward, is_equal, text, tiny


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("pattern", ["none", "middle_cycle", "middle_sequence"])
def test_fixed_depth_is_causal(pattern, kv):
    config = tiny(sharing_=pattern, kv=kv)
    for mode in ("train", "eval", "causal"):
        assert config.is_causal(mode)
    assert is_free_of_the_future(config, "eval")


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("gating", ["weighted", "additive", "delta", "replace"])
def test_expert_choice_in_causal_mode_is_causal(gating, kv):
    config = tiny("expert_choice", gating=gating, kv=kv, capacity=(0.75, 0.5, 0.25))
    assert config.is_causal("causal")
    assert is_free_of_the_future(config, "causal")


@pytest.mark.parametrize("score", ["tanh", "none"])
def test_causal_mode_is_causal_for_every_score_and_router(score):
    config = tiny("expert_choice", "middle_cycle", blocks=1, score=score, router="mlp")
    assert is_free_of_the_future(config, "causal")


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_expert_choice_looks_ahead_and_says_so(mode, kv):
    config = tiny("expert_choice", kv=kv)
    assert not config.is_causal(mode)
    assert not is_free_of_the_future(config, mode, seeds=range(10))


def test_expert_choice_looks_ahead_while_it_warms_up():
    config = tiny("expert_choice", capacity_warmup_steps=4)
    assert not config.is_causal("train")
    assert not is_free_of_the_future(config, "train", seeds=range(10), step=jnp.int32(2))


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
def test_expert_choice_that_keeps_all_is_causal(kv):
    config = tiny("expert_choice", capacity=(1.0,) * 3, kv=kv)
    assert config.is_causal("eval")
    assert is_free_of_the_future(config, "eval")


@pytest.mark.parametrize("depth", ["fixed", "expert_choice"])
def test_the_last_logits_do_see_the_first_token(depth):
    config = tiny(depth)
    params, tokens = draw(config), text()
    other = tokens.at[:, 0].set((tokens[:, 0] + 1) % VOCAB)
    last = [forward(params, ids, config, "causal")[0][:, -1] for ids in (tokens, other)]
    assert not is_equal(*last)


def test_a_capacity_just_below_one_is_not_full():
    nearly = tiny("expert_choice", capacity=(1.0, 1.0, 0.99))
    assert not nearly.is_causal("eval")
