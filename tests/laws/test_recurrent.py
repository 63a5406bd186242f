"""Recursions of any number, their gradient cut, and tokens that come to rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, inject, kv, model, params, settings
from recursia.blocks import llama
from recursia.depth import recurrent
from recursia.layers.attention import Context
from recursia.sharing import grid as sharing
from tests import slow
from tests.laws import by_hand
from tests.laws.tiny import (
    BATCH,
    BLOCK,
    LENGTH,
    VOCAB,
    assert_close,
    counted,
    draw,
    error,
    is_equal,
    text,
)
from tests.test_accounting import loss as traced_loss

WIDTH = BLOCK.embed_dim


def tiny(recursions=3, blocks=2, *, dtype="float32", remat="none", input="adapter", **options):
    """Returns a model with a prelude and a coda of one block; options are the policy's."""
    return settings.Model(
        recursions * blocks + 2,
        BLOCK,
        recurrent.Config(recursions, **{"backprop_depth": 2} | options),
        sharing="cycle",
        prelude=1,
        coda=1,
        inject=inject.Config(input=input),
        loop_norm="last",
        dtype=dtype,
        remat=remat,
    ).build(VOCAB)


FIXED = tiny(sampler="fixed")


def weights(config, seed=0):
    """Returns parameters under which states draw near a fixed point."""
    drawn = draw(config, seed)
    calm = lambda p, s: 0.5 * p if s.is_decayed else p
    drawn = jax.tree.map(calm, drawn, model.specs(config))
    if config.inject.input == "adapter":
        narrow = drawn["inject"]["adapter"].at[:WIDTH].mul(0.3)
        drawn["inject"] = {**drawn["inject"], "adapter": 1.5 * narrow}
    return drawn


def noise(seed=0, length=LENGTH):
    """Returns a first state."""
    return jax.random.normal(jax.random.key(seed), (BATCH, length, WIDTH))


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def run(weights, tokens, config, mode="eval", **options):
    """Returns logits and what the policy reports."""
    out = model.apply(weights, tokens, config, mode=mode, **options)
    return model.logits(weights, out.hidden, config), out.aux


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def gradient(weights, state, tokens, config, mode="train", key=None):
    """Returns the gradient of a number that all logits move, by parameters and first state."""

    def total(weights, state):
        logits, _ = run(weights, tokens, config, mode, state=state, key=key)
        return jnp.sin(logits).mean()

    return jax.grad(total, (0, 1))(weights, state)


@functools.lru_cache
def key_of(recursions, depth):
    """Returns a key with which training walks that many recursions."""
    total = jax.jit(lambda seed: sum(recurrent.draw(depth, jax.random.key(seed))))
    return next(jax.random.key(s) for s in range(10_000) if total(s) == recursions)


def block_by_hand(p, x, part, k):
    """Returns one block's output for a row."""
    where = np.stack([np.arange(len(x)), np.ones(len(x))])
    return by_hand.block(by_hand.pick(p[part], k), x, where, BLOCK)[0]


def walk_by_hand(p, tokens, state, config, recursions):
    """Returns logits [B T V] and depths [B T] of a loop over rows and recursions, in float64."""
    depth, rows, depths = config.depth, [], []
    end = np.asarray(p["final_norm"], np.float64)
    for row, s in zip(np.asarray(tokens), np.asarray(state, np.float64), strict=True):
        block = functools.partial(block_by_hand, p)
        table = np.asarray(p["embed"]["table"], np.float64)
        e = block(table[row], "prelude", 0)
        rests, taken = np.zeros(len(row), bool), np.zeros(len(row), int)

        def predicted(s, block=block, table=table):
            x = block(by_hand.norm(s, end, BLOCK.norm_eps), "coda", 0)
            logits = by_hand.norm(x, end, BLOCK.norm_eps) @ table.T
            return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

        for _ in range(recursions):
            y = s + e
            if config.inject.input == "adapter":
                y = np.concatenate([s, e], -1) @ np.asarray(p["inject"]["adapter"], np.float64)
            for k in range(config.grid.num_blocks):
                y = block(y, "core", k)
            y[rests] = s[rests]
            taken += ~rests
            size = lambda x: np.sqrt((x**2).sum(-1))
            old, new = predicted(s), predicted(y)
            entropy = lambda said: -(np.exp(said) * said).sum(-1)
            far = {
                "none": np.ones(len(row)),
                "kl": (np.exp(new) * (new - old)).sum(-1),
                "entropy": np.abs(entropy(new) - entropy(old)),
                "latent_diff": size(y - s) / size(y),
                "cosine": 1 - (s * y).sum(-1) / size(s) / size(y),
            }[depth.exit]
            rests, s = rests | (far < (depth.exit_threshold if depth.exit != "none" else 0)), y
        x = block(by_hand.norm(s, end, BLOCK.norm_eps), "coda", 0)
        rows.append(by_hand.norm(x, end, BLOCK.norm_eps) @ table.T)
        depths.append(taken)
    return np.stack(rows), np.stack(depths)


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
    of = lambda exit: recurrent.Config(4, exit=exit).exit_threshold
    assert (of("latent_diff"), of("cosine")) == (0.03, 1e-3)
    assert (of("kl"), of("entropy")) == (1e-3, 1e-3)


def test_a_wanted_token_at_rest_stops_the_loop():
    config = tiny(6, exit="latent_diff", exit_threshold=0.4)
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


@functools.partial(jax.jit, static_argnames="config")
def run_state(p, tokens, config, wanted):
    """Returns states before the coda, and depths."""
    bare = dataclasses.replace(config, grid=dataclasses.replace(config.grid, coda=0))
    out = model.apply({**p, "coda": {}}, tokens, bare, mode="causal", state=noise(), wanted=wanted)
    return out.hidden, out.aux.depth_used


def test_recursions_without_gradient_change_no_value():
    p = weights(FIXED)
    full = tiny(sampler="fixed", backprop_depth=3)
    ours, all_trained = (run(p, text(), c, "train", state=noise())[0] for c in (FIXED, full))
    assert_close(ours, all_trained)
    assert_close(ours, run(p, text(), FIXED, "eval", state=noise())[0])


@pytest.mark.parametrize("recursions", [1, 2, 3, 7])
def test_the_first_state_has_a_gradient_when_all_recursions_do(recursions):
    config = tiny()
    p, key = weights(config), key_of(recursions, config.depth)
    towards = gradient(p, noise(), text(), config, key=key)[1]
    assert bool(np.any(towards)) == (recursions <= config.depth.backprop_depth)


@pytest.mark.parametrize("recursions", [slow(1), 2, slow(5)])
def test_the_gradient_is_that_of_a_loop_cut_by_hand(recursions):
    config, tokens = tiny(), text()
    p, key = weights(config), key_of(recursions, config.depth)
    place = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
    where = Context(place, jnp.ones_like(place))

    def block(x, bank, k):
        return llama.apply(jax.tree.map(lambda leaf: leaf[k], bank), x, where, BLOCK)[0]

    def total(p):
        norm = lambda x: model.normalise(p, x, config)
        e, x = block(p["embed"]["table"][tokens], p["prelude"], 0), noise()
        for i in range(recursions):
            if i == recursions - config.depth.backprop_depth:
                x = jax.lax.stop_gradient(x)
            x = jnp.concatenate([x, e], -1) @ p["inject"]["adapter"]
            for k in range(2):
                x = block(x, p["core"], k)
        x = norm(block(norm(x), p["coda"], 0))
        return jnp.sin(x @ p["embed"]["table"].T).mean()

    ours = gradient(p, noise(), tokens, config, key=key)[0]
    assert_close(ours, jax.jit(jax.grad(total))(p), n=1024)
    fixed = tiny(recursions, sampler="fixed")
    assert_close(ours, gradient(p, noise(), tokens, fixed)[0], n=1024)


@pytest.mark.parametrize("remat", ["block", "recursion"])
def test_what_is_computed_again_changes_no_gradient(remat):
    config, key = tiny(), key_of(3, tiny().depth)
    p = weights(config)
    ours = gradient(p, noise(), text(), tiny(remat=remat), key=key)
    assert_close(ours, gradient(p, noise(), text(), config, key=key))


def program(config):
    """Returns the program of loss and gradient."""
    p = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, 13), jnp.int32)
    run = jax.value_and_grad(functools.partial(traced_loss, model_config=config))
    return jax.make_jaxpr(run)(p, tokens)


def test_recursions_that_may_be_skipped_keep_no_weights_each():
    trained, blocks = 5, 3
    for remat in ("none", "block"):
        config, shapes = tiny(8, blocks, backprop_depth=trained, remat=remat), set()
        bank = {spec.shape for spec in jax.tree.leaves(model.specs(config)["core"]["mlp"])}
        note = lambda e, to=shapes: to.update(value.aval.shape for value in e.outvars) or 0
        counted(program(config).jaxpr, note)
        kept = {(trained, *shape) for shape in bank} & shapes
        assert bool(kept) == (remat == "none")


def test_of_recursions_that_may_be_skipped_blocks_alone_are_computed_again():
    """As many products more as where the number of recursions is known."""

    def products(**how):
        is_product = lambda equation: equation.primitive.name == "dot_general"
        return counted(program(tiny(8, 3, backprop_depth=5, **how)).jaxpr, is_product, True)

    drawn, known = (
        products(sampler=sampler, remat="block") - products(sampler=sampler)
        for sampler in ("poisson_lognormal", "fixed")
    )
    assert drawn == known > 0


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
    assert model.is_causal(config, mode)
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


@pytest.mark.parametrize("mode", ["train", slow("eval"), "causal"])
def test_packed_documents_have_the_logits_they_have_alone(mode):
    config = tiny(6, sampler="fixed", exit="latent_diff", exit_threshold=0.4)
    p, tokens, cut = weights(config), text(), 7
    positions = jnp.array([[*range(cut), *range(LENGTH - cut)]] * BATCH)
    segments = jnp.array([[1] * cut + [2] * (LENGTH - cut)] * BATCH)
    packed, aux = run(p, tokens, config, mode, positions=positions, segment_ids=segments)
    alone = [run(p, part, config, mode) for part in (tokens[:, :cut], tokens[:, cut:])]
    assert_close(packed, jnp.concatenate([logits for logits, _ in alone], axis=1))
    depths = np.concatenate([aux.depth_used for _, aux in alone], axis=1)
    assert np.array_equal(aux.depth_used, depths)
    assert error(run(p, tokens, config, mode)[0][:, cut:], packed[:, cut:]) > 1e-2


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


@pytest.mark.parametrize(
    ("recursions", "trained", "remat"),
    [(5, 2, "none"), (5, 2, "block"), (5, 2, "recursion"), (2, 4, "none"), (3, 1, "none")],
)
def test_flops_of_a_cut_gradient_are_exact(recursions, trained, remat):
    config = tiny(recursions, sampler="fixed", backprop_depth=trained, remat=remat)
    p = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, 13), jnp.int32)

    def count(transform):
        function = transform(functools.partial(traced_loss, model_config=config))
        return accounting.count_flops(jax.make_jaxpr(function)(p, tokens))

    forward, both = count(lambda f: f), count(jax.value_and_grad)
    assert BATCH * accounting.forward_flops(config, 13) == forward
    assert BATCH * accounting.executed_training_flops(config, 13) == both
    assert BATCH * accounting.training_flops(config, 13) <= min(both, 3 * forward)


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
    assert abs(recurrent._correlation(3 * same) - 1) < 1e-3
    assert abs(recurrent._correlation(noise(length=400))) < 0.02


LEARNED = dataclasses.replace(FIXED, inject=inject.Config(input="adapter", step="learned"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (dataclasses.replace(FIXED, inject=inject.Config()), "take input 'adapter'"),
        (LEARNED, "step 'none'"),
        (dataclasses.replace(FIXED, kv=kv.Config("first_recursion")), "kv_sharing"),
        (
            dataclasses.replace(FIXED, grid=dataclasses.replace(FIXED.grid, order="sequence")),
            "block by block",
        ),
        (
            dataclasses.replace(
                FIXED, grid=sharing.plan(6, 3, "none", (), llama.SLOTS, recurrent.SLOTS)
            ),
            "norms, attention, mlp varies",
        ),
    ],
)
def test_what_it_cannot_walk_is_refused_in_one_line(config, why):
    with pytest.raises(ValueError, match=why) as refusal:
        run(weights(config), text(), config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backprop_depth", -1), ("state_std", -0.1), ("exit_threshold", -1.0), ("sigma", 1.5)],
)
def test_a_number_out_of_range_is_refused_in_one_line(field, value):
    with pytest.raises(ValueError, match=field) as refusal:
        recurrent.Config(3, **{field: value})
    assert "\n" not in str(refusal.value)
