"""While capacities fall, all tokens are computed and some kept; then only the kept are."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from recursia.depth.expert_choice import ExpertChoice
from tests.helpers import exhaustive
from tests.helpers.points import point
from tests.helpers.tiny import assert_close, draw, forward, gradient, text, tiny

# (1, 2/3, 1/3) of 16 tokens, from 1 along 0.5 (1 + cos(pi s / 4)) = .854 .5 .146 0 at s = 1 2 3 4.
KEPT = ((16, 15, 14), (16, 13, 10), (16, 11, 6), (16, 10, 5))
WARM = tiny("expert_choice", capacity_warmup_steps=4)
COLD = tiny("expert_choice")


def test_capacities_fall_along_half_a_cosine():
    params, tokens = draw(WARM), text(length=16)
    for step, kept in (*enumerate(KEPT), (4, KEPT[-1]), (1000, KEPT[-1])):
        metrics = forward(params, tokens, WARM, "train", step=jnp.int32(step))[1].metrics
        assert np.array_equal(metrics["tokens_kept"] * 16, kept), step


def test_evaluation_is_not_warmed_up():
    params, tokens = draw(WARM), text(length=16)
    metrics = forward(params, tokens, WARM, "eval", step=jnp.int32(0))[1].metrics
    assert np.array_equal(metrics["tokens_kept"] * 16, KEPT[-1])


@pytest.mark.slow
def test_keeping_by_mask_is_keeping_by_gathering_at_every_step():
    params, tokens = draw(WARM), text(length=16)
    for step, kept in enumerate(KEPT[:3]):
        capacity = tuple(k / 16 for k in kept)
        gathered = forward(params, tokens, tiny("expert_choice", capacity=capacity), "train")
        masked = forward(params, tokens, WARM, "train", step=jnp.int32(step))
        assert_close(masked[0], gathered[0])
        assert np.array_equal(masked[1].depth_used, gathered[1].depth_used)


@pytest.mark.slow
def test_after_the_warmup_the_mask_equals_gathering_with_gradients():
    options = {"recursions": 2, "blocks": 1, "capacity": (0.75, 0.5)}
    warm = tiny("expert_choice", **options, capacity_warmup_steps=4)
    cold = tiny("expert_choice", **options)
    params = draw(cold)
    masked = gradient(params, text(), warm, step=jnp.int32(4))
    assert_close(masked, gradient(params, text(), cold), n=8 * 64)


# Block 0 of later recursions reads keys that an earlier one made; block 1 makes its own, or not.
SHARED = ("first_recursion", *map(exhaustive, ("groups/3", "upper_half")), ((0, 0), (2, 3), (4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("kv", SHARED)
def test_after_the_warmup_the_mask_equals_gathering_where_steps_share_keys(kv):
    """Experts too see the same tokens, and rows with padding."""
    made = point("widenet", "expert_choice", kv_sharing=kv)
    depth = ExpertChoice(3, capacity=(0.75, 0.5, 0.25))
    warm = dataclasses.replace(depth, capacity_warmup_steps=4)
    at = lambda depth: dataclasses.replace(made, depth=depth)
    segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
    run = functools.partial(forward, draw(made), text(), mode="train", segment_ids=segments)
    masked, gathered = run(config=at(warm), step=jnp.int32(4)), run(config=at(depth))
    assert_close(masked[0][segments > 0], gathered[0][segments > 0])
    assert_close(masked[1].losses, gathered[1].losses)


def test_ties_go_to_the_earlier_under_the_mask_too():
    params = draw(WARM)
    params = {**params, "depth": {"router": {"out": jnp.zeros((3, 16))}}}
    _, aux = forward(params, text(length=16), WARM, "train", step=jnp.int32(2))
    assert np.array_equal(aux.depth_used, [[3] * 6 + [2] * 5 + [1] * 5] * 2)


def test_the_config_changes_once_when_the_warmup_is_over():
    for step in (0, 1, 3):
        assert WARM.at_step(step) == WARM
    for step in (4, 5, 1000):
        assert WARM.at_step(step) == COLD
    assert COLD.at_step(0) == COLD
    fixed = tiny()
    assert fixed.at_step(7) == fixed


def test_training_does_not_warm_up_without_knowing_its_step():
    with pytest.raises(ValueError, match="step"):
        forward(draw(WARM), text(), WARM, "train", step=None)


def test_one_warmup_step_is_none():
    one = dataclasses.replace(COLD, depth=dataclasses.replace(COLD.depth, capacity_warmup_steps=1))
    params = draw(COLD)
    warm = forward(params, text(), one, "train", step=jnp.int32(0))[0]
    assert_close(warm, forward(params, text(), COLD, "train")[0])
