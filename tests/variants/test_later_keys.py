"""Keys of later steps: passes until they settle, and what cannot go with them."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import accounting, kv, model
from recursia.sharing.remat import Remat
from tests.helpers import flops, points
from tests.helpers.flops import assert_exact, traced
from tests.helpers.tiny import LENGTH, assert_close, draw, error, forward, gradient, text


def build(plan="top/1", **passes):
    """Returns a model of four steps that share nothing else."""
    config = points.point(sharing="none", recursions=2, num_blocks=2)
    return dataclasses.replace(config, kv=kv.Plan(plan, **passes))


@pytest.mark.slow
def test_as_many_passes_as_tokens_are_decoding_and_fewer_are_right_for_so_many_tokens():
    decoded = forward(draw(build()), text(), build(), "causal")[0]
    for count in (1, 3, LENGTH):
        config = build(num_free_passes=count - 1, num_trained_passes=1)
        logits = forward(draw(config), text(), config, "eval")[0]
        assert_close(logits[:, :count], decoded[:, :count])
        assert count == LENGTH or error(logits[:, count:], decoded[:, count:]) > 1e-3


@pytest.mark.slow
def test_passes_with_a_gradient_change_gradients_alone():
    found = []
    for free, trained in ((3, 1), (2, 2)):
        config = build(num_free_passes=free, num_trained_passes=trained)
        found.append(gradient(draw(config), text(), config))
    (loss, one), (same, two) = found
    assert_close(loss, same)
    keys = lambda grads: grads["core"]["attention"]["key"]
    assert error(keys(one), keys(two)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["none", "block"])
def test_flops_of_all_passes_are_exact(unit):
    assert_exact(build(num_free_passes=0), remat=Remat(unit))
    config, remat, length = build(num_free_passes=3), Remat(unit), 13
    both = traced(jax.value_and_grad, config, length, remat)
    assert flops.BATCH * accounting.executed_training_flops(config, length, remat) == both


def test_a_cache_holds_the_keys_that_are_read():
    whole, condensed = build("own"), build()
    bytes_ = lambda config: accounting.cache_bytes_per_token(config, LENGTH)
    assert bytes_(condensed) == 3 / 4 * bytes_(whole)


@pytest.mark.parametrize(
    ("plan", "depth", "keys"),
    [
        ("last_recursion", 2, ((2, 3), (2, 3))),
        ("last_recursion", 1, ((0, 1),)),
        ("last_recursion", 4, ((6, 7),) * 4),
        ("middle_recursion", 4, ((2, 3), (2, 3), (2, 3), (2, 3))),
        ("middle_recursion", 2, ((2, 3), (2, 3))),
    ],
)
def test_another_depth_has_the_keys_of_its_own_last_recursion(plan, depth, keys):
    config = points.point(kv_sharing=plan)
    made, weights = model.at_depth(config, draw(config), depth)
    assert made.schedule.keys == keys
    assert np.isfinite(forward(weights, text(), made, "eval")[0]).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda: build("top/2"), "2 steps at each end make their own keys, and of 4"),
        (lambda: dataclasses.replace(build(), kv=kv.Plan("top/1", 1)), "window of 1 token"),
        (lambda: build(num_trained_passes=0), "num_trained_passes"),
        (lambda: points.point(kv_sharing="middle_recursion").at_depth(1), "take at least 2"),
        (
            lambda: points.point(sharing="none", kv_sharing="last_recursion").at_depth(2),
            "other steps then make keys",
        ),
        *(
            (lambda name=name: points.point(depth_=name, kv_sharing="last_recursion"), "kv_sharing")
            for name in points.DEPTHS
            if name != "fixed"
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(change, why):
    with pytest.raises(ValueError, match=why):
        change()
