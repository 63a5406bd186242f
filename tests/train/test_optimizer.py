"""AdamW by its formula, what it decays, and the courses of the learning rate by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import config as configuration
from recursia import kinds, learning_rate, model, params, settings
from recursia.optimizers.adamw import AdamW
from tests.helpers.tiny import error, tiny, tol

CONFIG = AdamW(learning_rate=0.1, weight_decay=0.5, clip_norm=0.0)
STEADY = optax.constant_schedule(1.0)


def moved(specs, params, grads, config=CONFIG):
    """Returns parameters after one step."""
    chain = config.transform(specs, STEADY)
    updates, _ = chain.update(grads, chain.init(params), params)
    return optax.apply_updates(params, updates)


def ones_like(specs):
    return jax.tree.map(lambda spec: jnp.ones(spec.shape), specs)


@pytest.mark.parametrize("depth", ["fixed", "expert_choice"])
@pytest.mark.parametrize("how", ["block", "recursion+block", "one"])
def test_matrices_embeddings_and_routers_are_decayed_and_norms_are_not(depth, how):
    varies = (("norms", how),)
    specs = model.specs(tiny(depth, "middle_cycle", varies=varies, is_tied=False))
    params = ones_like(specs)
    after = moved(specs, params, jax.tree.map(jnp.zeros_like, params))
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        name = jax.tree_util.keystr(path)
        is_norm = "norm" in name
        names.add(is_norm)
        assert np.allclose(leaf, 1.0 if is_norm else 1 - 0.1 * 0.5), name
    assert names == {True, False}
    assert after["core"]["norms"]["mlp"].ndim == 2  # in a bank it has a matrix's axes


def test_a_step_is_the_formula_of_adamw():
    rng = np.random.default_rng(0)
    config = AdamW(0.01, b1=0.9, b2=0.95, eps=1e-3, weight_decay=0.2, clip_norm=0.0)
    factor = lambda step: 1.0 / (step + 1)
    specs = model.specs(tiny())
    chain = config.transform(specs, factor)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), specs)
    state, wide = chain.init(params), jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    mean, square = (jax.tree.map(np.zeros_like, wide) for _ in range(2))
    for step in range(3):
        grads = jax.tree.map(lambda p: np.asarray(rng.normal(size=p.shape), np.float32), params)
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(
            lambda v, g: 0.95 * v + 0.05 * np.square(g, dtype=float), square, grads
        )

        def by_hand(p, m, v, spec, step=step):
            m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
            decay = 0.2 * p if spec.is_decayed else 0.0
            return p - 0.01 / (step + 1) * (m / (np.sqrt(v) + 1e-3) + decay)

        wide = jax.tree.map(by_hand, wide, mean, square, specs)
    assert error(params, wide) < tol(jnp.float32, 3)


@pytest.mark.parametrize(
    ("clip", "size", "left"), [(1.0, 5.0, 1.0), (1.0, 0.5, 0.5), (0.0, 5.0, 5.0)]
)
def test_gradients_are_clipped_by_their_global_norm(clip, size, left):
    specs = model.specs(tiny())
    grads = ones_like(specs)
    grads = jax.tree.map(lambda g: g * size / optax.tree.norm(grads), grads)
    config = AdamW(clip_norm=clip, b1=0.0)
    chain = config.transform(specs, STEADY)
    _, state = chain.update(grads, chain.init(grads), grads)
    kept = next(part for part in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(part))
    assert abs(optax.tree.norm(kept.mu) - left) < 1e-5


@pytest.mark.parametrize("kind", kinds.names("optimizer"))
def test_a_state_is_as_large_as_its_kind_says(kind):
    config, specs = kinds.config_class("optimizer", kind)(), model.specs(tiny("expert_choice"))
    state = jax.eval_shape(config.transform(specs, STEADY).init, params.abstract(specs))
    is_entry = lambda leaf: leaf.dtype == jnp.float32  # others count steps and name phases
    entries = sum(leaf.size for leaf in jax.tree.leaves(state) if is_entry(leaf))
    assert 4 * entries == config.state_bytes(specs)


def test_a_section_without_a_kind_is_of_the_default_one():
    """So are configurations that were saved before there were kinds."""
    values = configuration.to_dict(configuration.load("mor:tiny", {"optimizer.b1": "0.5"}))
    assert values["optimizer"].pop("kind") == "adamw"
    run = configuration.build(settings.Run, values, "config")
    assert type(run.optimizer) is AdamW and run.optimizer.b1 == 0.5


def _is_adam(part):
    return isinstance(part, optax.ScaleByAdamState)


def course(num_steps, **changed):
    factor = learning_rate.factor(settings.Schedule(**changed), num_steps)
    return [float(factor(step)) for step in range(num_steps + 1)]


COSINE = [0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(9)]
TABLES = {
    "constant": (8, dict(kind="constant"), [1.0] * 9),
    "constant after a warm-up": (
        8,
        dict(kind="constant", warmup_steps=4),
        [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
    ),
    "cosine": (8, dict(kind="cosine"), COSINE),
    "cosine after a warm-up": (10, dict(kind="cosine", warmup_steps=2), [0, 0.5, *COSINE]),
    "cosine to a tenth": (
        8,
        dict(kind="cosine", final_fraction=0.1),
        [0.1 + 0.9 * c for c in COSINE],
    ),
    "wsd": (10, dict(kind="wsd", decay_fraction=0.4), [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
    "wsd after a warm-up, to a half": (
        10,
        dict(kind="wsd", warmup_steps=2, decay_fraction=0.4, final_fraction=0.5),
        [0, 0.5, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5],
    ),
    "wsd that decays from the start": (
        4,
        dict(kind="wsd", decay_fraction=1.0),
        [1, 0.75, 0.5, 0.25, 0],
    ),
    "wsd whose decay meets the warm-up": (
        4,
        dict(kind="wsd", warmup_steps=2, decay_fraction=1.0),
        [0, 0.5, 1, 0.5, 0],
    ),
    "wsd without decay": (4, dict(kind="wsd", decay_fraction=0.0), [1, 1, 1, 1, 1]),
    "a warm-up longer than the run": (
        4,
        dict(kind="wsd", warmup_steps=8),
        [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8],
    ),
}


@pytest.mark.parametrize(("num_steps", "changed", "table"), TABLES.values(), ids=TABLES)
def test_the_learning_rate_follows_its_table(num_steps, changed, table):
    assert np.allclose(course(num_steps, **changed), table, atol=1e-6)
