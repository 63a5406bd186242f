"""What a recurrent depth draws: how often a step goes round, and the noise that it starts from."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting
from recursia.depth import recurrent
from tests.helpers.recurrent_by_hand import FIXED, WIDTH, run, tiny, weights
from tests.helpers.tiny import BATCH, LENGTH, error, is_equal, text


@functools.lru_cache
def draws(count=200_000):
    """Returns drawn numbers of recursions at the published mean."""
    depth = recurrent.Recurrent(32)
    one = lambda seed: sum(recurrent.draw(depth, jax.random.key(seed)))
    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(count)))


def test_the_drawn_number_has_the_published_statistics():
    r = draws()
    assert abs(r.mean() - 33.0) < 0.1 and np.median(r) == 29
    assert abs(r.std() - 17.9) < 0.2 and abs((r <= 8).mean() - 0.014) < 0.002
    assert r.min() >= 1 and 22 <= np.bincount(r).argmax() <= 25


def test_the_drawn_number_is_one_more_than_a_poissons_of_log_normal_rate():
    random = np.random.default_rng(0)
    rates = np.exp(random.normal(math.log(32) - 0.5**2 / 2, 0.5, 400_000))
    edges = np.arange(0, 400, 4)
    theirs = np.histogram(1 + random.poisson(rates), edges)[0] / 400_000
    chance = recurrent.odds(32, 0.5)
    exact = np.histogram(1 + np.arange(len(chance)), edges, weights=chance)[0]
    drawn = np.histogram(draws(), edges)[0] / len(draws())
    assert np.abs(exact - theirs).max() < 2e-3 and np.abs(exact - drawn).max() < 2e-3
    assert abs(chance.sum() - 1) < 1e-12


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mean", [1, 4, 32])
def test_the_mean_is_one_more_than_the_rates(mean, sigma):
    chance = recurrent.odds(mean, sigma)
    assert abs(chance @ (1 + np.arange(len(chance))) - (mean + 1)) < 1e-3 * mean
    if sigma == 0:
        poisson = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(8)]
        np.testing.assert_allclose(chance[:8], poisson, rtol=1e-9)


def test_all_parts_and_processes_of_a_step_walk_alike():
    config, p = tiny(), weights(tiny())
    depth = lambda key, microbatch: (
        run(p, text(), config, "train", key=key, microbatch=microbatch)[1].depth_used
    )
    keys = [jax.random.fold_in(jax.random.key(3), step) for step in range(12)]
    of_step = [int(depth(key, 0)[0, 0]) for key in keys]
    assert all(np.all(depth(key, 5) == r) for key, r in zip(keys, of_step, strict=True))
    assert len(set(of_step)) > 2


def started(
    key=None, microbatch=0, length=LENGTH, rows=BATCH, positions=None, std=None, dtype="float32"
):
    config = recurrent.Recurrent(2) if std is None else recurrent.Recurrent(2, state_std=std)
    x = jnp.zeros((rows, length, WIDTH), dtype)
    positions = jnp.arange(length) if positions is None else positions
    positions = jnp.broadcast_to(positions, (rows, length))
    call = recurrent.Call("train", key=key, microbatch=microbatch)
    return recurrent.initial_state(config, call, x, positions)


def test_noise_depends_on_row_position_part_and_key_only():
    key = jax.random.key(7)
    state = started(key)
    assert is_equal(state[:1, :5], started(key, length=5, rows=1))
    assert is_equal(state[:, 3:], started(key, length=LENGTH - 3, positions=3 + np.arange(9)))
    others = [started(key, microbatch=1), started(jax.random.key(8)), state[::-1], state[:, ::-1]]
    assert all(error(state, other) > 0.1 for other in others)
    assert is_equal(started(), started()) and is_equal(started()[0], started()[1])


def test_noise_is_a_normal_cut_at_three_deviations():
    state = np.asarray(started(jax.random.key(0), length=400, rows=8), np.float64)
    std = math.sqrt(2 / 5)
    assert abs(state.std() / std - 0.9866) < 0.01 and abs(state.mean()) < 0.01
    assert 2.9 * std < np.abs(state).max() <= 3 * std * (1 + 1e-6)
    assert abs(np.corrcoef(state[:, :-1].ravel(), state[:, 1:].ravel())[0, 1]) < 0.02
    assert not np.any(started(std=0.0)) and started(dtype="bfloat16").dtype == jnp.bfloat16


def test_a_text_has_one_score_wherever_it_stands():
    p = weights(FIXED)
    twice = jnp.concatenate([text()[:1]] * 2)
    logits = run(p, twice, FIXED)[0]
    assert is_equal(logits[0], logits[1]) and is_equal(logits, run(p, twice, FIXED)[0])


def test_costs_of_a_drawn_number_are_means():
    config = tiny(32, backprop_depth=8)
    free, trained = (each.times for each in config_passes(config))
    r = draws()
    assert abs(trained - np.minimum(r, 8).mean()) < 0.01
    assert abs(free - np.maximum(r - 8, 0).mean()) < 0.1
    assert abs(accounting.mean_depth(config, 8) - 33) < 1e-3
    # FLOPs are linear in numbers of recursions, and the mean is between two numbers.
    at = lambda n: accounting.forward_flops(tiny(n, sampler="fixed"), 8)
    assert abs(accounting.forward_flops(config, 8) / at(33) - 1) < 1e-4


def config_passes(config):
    return config.depth.passes(config.schedule, 8)
