"""Recursions of any number, and tokens that come to rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import injection, kv, model, params
from recursia.depth import recurrent
from recursia.layers.attention import Context
from tests.helpers.recurrent_by_hand import (
    FIXED,
    WIDTH,
    gradient,
    key_of,
    noise,
    run,
    tiny,
    walk_by_hand,
    weights,
)
from tests.helpers.tiny import BATCH, LENGTH, VOCAB, assert_close, error, is_equal, text


@pytest.mark.parametrize(
    ("mode", "input"),
    [("train", "adapter"), ("eval", "adapter"), ("causal", "adapter"), ("train", "add")],
)
def test_a_fixed_number_is_a_loop(mode, input):
    config = tiny(sampler="fixed", input=input)
    p = weights(config)
    logits, aux = run(p, text(), config, mode, state=noise())
    assert_close(logits, walk_by_hand(p, text(), noise(), config, 3)[0])
    assert np.all(aux.depth_used == 3)


@pytest.mark.parametrize("recursions", [1, 2, 3, 7])
def test_a_drawn_number_is_a_loop_of_that_length(recursions):
    config = tiny()
    p, key = weights(config), key_of(recursions, config.depth)
    logits, aux = run(p, text(), config, "train", state=noise(), key=key)
    assert_close(logits, walk_by_hand(p, text(), noise(), config, recursions)[0])
    assert np.all(aux.depth_used == recursions)


@pytest.mark.parametrize(
    ("exit", "threshold"),
    [("latent_diff", 0.4), ("cosine", 0.06), ("kl", 0.05), ("entropy", 0.05)],
)
def test_resting_tokens_are_a_loop_that_leaves_them(exit, threshold):
    config = tiny(5, exit=exit, exit_threshold=threshold)
    p = weights(config)
    theirs, depths = walk_by_hand(p, text(), noise(), config, 5)
    for mode in ("eval", "causal"):
        logits, aux = run(p, text(), config, mode, state=noise())
        assert np.array_equal(aux.depth_used, depths)
        assert_close(logits, theirs)
    assert len(np.unique(depths)) >= 3


def test_published_thresholds_are_taken_where_none_is_given():
    trained = recurrent.Recurrent(4)  # without an exit, which may be chosen afterwards
    of = lambda exit: dataclasses.replace(trained, exit=exit).threshold
    assert (of("latent_diff"), of("cosine")) == (0.03, 1e-3)
    assert (of("kl"), of("entropy")) == (1e-3, 1e-3)


def test_a_wanted_token_at_rest_stops_the_loop():
    config = without_coda(tiny(6, exit="latent_diff", exit_threshold=0.4))
    p = weights(config)
    logits, aux = run(p, text(), config, "causal", state=noise())
    depths = np.asarray(aux.depth_used)
    early = depths == depths.min()
    assert depths.min() < depths.max()
    some, less = run(p, text(), config, "causal", state=noise(), wanted=jnp.asarray(early))
    assert np.all(less.depth_used == depths.min())
    # Tokens that others see rest as early in both walks, or they would see another's state.
    assert np.array_equal(np.minimum(depths, depths.min()), less.depth_used)
    b, t = np.argwhere(early)[0]
    if np.all(early[b, : t + 1]):
        assert_close(some[b, : t + 1], logits[b, : t + 1])


def test_a_token_read_early_is_as_in_the_whole_walk():
    config = tiny(6, exit="latent_diff", exit_threshold=0.4)
    p, tokens = weights(config), text()
    whole, aux = run(p, tokens, config, "causal", state=noise())
    for t in range(LENGTH):
        wanted = jnp.zeros((BATCH, LENGTH), bool).at[0, t].set(True)
        state = run_state(p, tokens, config, wanted)
        assert_close(state[0][0, t], run_state(p, tokens, config, None)[0][0, t])
        assert state[1][0, t] == aux.depth_used[0, t]
    assert np.isfinite(whole).all()


def without_coda(config):
    """Returns a model all of whose tokens that are not wanted may be left out."""
    return dataclasses.replace(config, coda=0, num_layers=config.num_layers - config.coda)


@functools.partial(jax.jit, static_argnames="config")
def run_state(p, tokens, config, wanted):
    """Returns states before the coda, and depths."""
    bare, p = without_coda(config), {**p, "coda": {}}
    out = model.apply(p, tokens, bare, mode="causal", state=noise(), wanted=wanted)
    return out.hidden, out.aux.depth_used


def test_one_program_serves_every_depth():
    config = tiny()
    step = jax.jit(lambda p, key: run(p, text(), config, "train", key=key)[1].depth_used[0, 0])
    p = weights(config)
    depths = {int(step(p, key_of(r, config.depth))) for r in (1, 3, 7)}
    assert depths == {1, 3, 7} and step._cache_size() == 1


CUTS = (0, 4, LENGTH - 2)


@pytest.mark.parametrize(
    ("exit", "mode"),
    [("none", "train"), ("none", "eval"), ("latent_diff", "eval"), ("cosine", "causal")],
)
def test_no_token_sees_a_later_one(exit, mode):
    config = tiny(6, exit=exit, exit_threshold=0.06 if exit == "cosine" else 0.4)
    assert config.is_causal(mode)
    for seed in range(2):
        p, tokens = weights(config, seed), text(seed)
        logits, aux = run(p, tokens, config, mode)
        for cut in CUTS:
            later = (text(seed + 100)[:, cut + 1 :] + 1) % VOCAB
            changed = jnp.concatenate([tokens[:, : cut + 1], later], axis=1)
            other, other_aux = run(p, changed, config, mode)
            # A later token may keep the loop going; one at rest is left as it is.
            assert is_equal(logits[:, : cut + 1], other[:, : cut + 1])
            same = np.asarray(aux.depth_used == other_aux.depth_used)
            assert same[:, : cut + 1].all() and not is_equal(logits, other)


@pytest.mark.parametrize("depth", [1, 8])
def test_the_model_runs_at_any_depth(depth):
    p = weights(FIXED)
    other, q = model.at_depth(FIXED, p, depth)
    logits, aux = run(q, text(), other, state=noise())
    assert_close(logits, walk_by_hand(p, text(), noise(), FIXED, depth)[0])
    assert len(aux.states) == depth
    common = min(depth, 3)
    whole = run(p, text(), FIXED, state=noise())[1].states
    assert_close(aux.states[:common], whole[:common])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval", "causal"])
def test_bfloat16_computes_and_float32_measures(mode):
    config = tiny(dtype="bfloat16", exit="latent_diff", exit_threshold=0.2)
    p = params.abstract(model.specs(config))
    with jax.numpy_dtype_promotion("strict"):
        shape = jax.eval_shape(lambda p: model.apply(p, text(), config, mode=mode), p)
    assert shape.hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(shape.aux.metrics)} <= {jnp.dtype("float32")}
    if mode == "train":
        p = weights(config)
        near = gradient(p, noise(), text(), config, key=key_of(3, config.depth))
        exact = gradient(p, noise(), text(), tiny(), key=key_of(3, config.depth))
        assert error(near[0]["inject"], exact[0]["inject"]) < 0.1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(near))


def test_correlation_is_one_of_equal_tokens_and_small_of_noise():
    same = jnp.broadcast_to(noise()[:, :1], (BATCH, LENGTH, WIDTH))
    whole = Context(jnp.zeros((BATCH, LENGTH)))
    assert abs(recurrent._correlation(3 * same, whole) - 1) < 1e-3
    assert abs(recurrent._correlation(noise(length=400), whole)) < 0.02


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"inject": injection.Injection()}, "take input 'adapter'"),
        ({"inject": injection.Injection(input="adapter", step="learned")}, "step 'none'"),
        ({"kv": kv.Plan("first_recursion")}, "kv_sharing"),
        ({"kv": kv.Plan("groups/4")}, "kv_sharing"),
        ({"sharing": "sequence"}, "block by block"),
        ({"sharing": "none"}, "norms, attention, mlp varies"),
    ],
)
def test_what_it_cannot_walk_is_refused_in_one_line(change, why):
    with pytest.raises(ValueError, match=why) as refusal:
        dataclasses.replace(FIXED, **change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backprop_depth", -1), ("state_std", -0.1), ("exit_threshold", -1.0), ("sigma", 1.5)],
)
def test_a_number_out_of_range_is_refused_in_one_line(field, value):
    with pytest.raises(ValueError, match=field) as refusal:
        recurrent.Recurrent(3, **{field: value})
    assert "\n" not in str(refusal.value)
