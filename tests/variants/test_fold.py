"""Matrices folded into a memory: every chunk is used as often, and its deviation is free."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import accounting, model
from recursia.optimizers.adamw import AdamW
from recursia.params import at
from recursia.sharing import matrices
from recursia.sharing.fold import Fold
from recursia.sharing.tied import Tied
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import draw, error, forward, gradient, is_equal, text, tiny

STEPS = 6


def build(ratio, **options):
    made = tiny(sharing_="none", recursions=1, blocks=STEPS)
    return dataclasses.replace(made, weights=Fold(ratio, **options))


def in_order(made, params):
    """Returns the unshared model whose matrices are the memory, cut one after the other."""
    core, chunk = dict(params["core"]), 8 * 128
    memory = np.asarray(core.pop("memory")["chunks"]).reshape(STEPS, -1)
    first, block = 0, made.block_specs
    for slot in made.weights.slots:
        core[slot] = dict(core[slot])
        for name, spec in matrices.named(block[slot]).items():
            last = first + math.prod(spec.shape)
            core[slot][name] = jnp.asarray(memory[:, first:last].reshape(STEPS, *spec.shape))
            first = last
    assert memory.shape[1] - first < chunk
    return dataclasses.replace(made, weights=Tied()), {**params, "core": core}


def test_a_memory_of_all_numbers_is_the_unshared_model_to_the_bit():
    made = build(1.0)
    plain, theirs = in_order(made, params := draw(made))
    assert is_equal(forward(params, text(), made)[0], forward(theirs, text(), plain)[0])


@pytest.mark.parametrize("ratio", [0.25, 0.3, 0.7])
def test_every_chunk_is_used_as_often_or_once_more(ratio):
    made = build(ratio)
    chunks = made.schedule.entry("memory")
    load = np.bincount(chunks.reshape(-1), minlength=made.schedule.size("memory"))
    assert made.schedule.size("memory") == math.ceil(ratio * chunks.size)
    assert load.max() - load.min() <= 1
    assert len({tuple(row) for row in chunks.tolist()}) > 1


def trained(made, init_std, num_steps=3):
    """Returns the logits after a few steps of a memory drawn with some deviation."""
    made = dataclasses.replace(made, weights=dataclasses.replace(made.weights, init_std=init_std))
    params, specs = model.init(made, jax.random.key(0)), model.specs(made)
    rule = AdamW(learning_rate=1e-2, weight_decay=0.0, clip_norm=0.1)
    rule = rule.transform(specs, lambda _: 1.0)
    state = rule.init(params)
    for _ in range(num_steps):
        updates, state = rule.update(gradient(params, text(), made)[1], state, params)
        params = optax.apply_updates(params, updates)
    return forward(params, text(), made)[0]


@pytest.mark.slow
def test_training_does_not_depend_on_the_memorys_deviation():
    made = build(0.5, has_signs=True)
    small, large = trained(made, 0.005), trained(made, 0.5)
    assert error(small, large) < 1e-3
    assert error(small, trained(made, 0.005, 2)) > 1e-2


def test_matrices_start_with_their_own_deviation():
    mlp = dataclasses.replace(tiny().block.feedforward, init=dataclasses.replace(
        tiny().block.feedforward.init, std=0.1))  # fmt: skip
    made = build(0.5)
    made = dataclasses.replace(made, block=dataclasses.replace(made.block, feedforward=mlp))
    params, kind = model.init(made, jax.random.key(0)), made.weights.of(made.block_specs)
    core = params["core"].items()
    entry = kind.bind({slot: at(tree, made.schedule.entry(slot)[1]) for slot, tree in core})
    assert abs(np.std(entry["attention"]["query"]) / 0.02 - 1) < 0.2
    assert abs(np.std(entry["mlp"]["gate"]) / 0.1 - 1) < 0.2


def test_flops_are_the_vanilla_models():
    made = flat(weights=Fold(0.5))
    assert_exact(made, seq_len=7)
    theirs = dataclasses.replace(made, weights=Tied())
    assert accounting.forward_flops(made, 7) == accounting.forward_flops(theirs, 7)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(ratio=0.0), "ratio: got 0"),
        (dict(ratio=1.5), "ratio: got 1.5"),
        (dict(ratio=0.5, rows=4), "rows: got 4"),
        (dict(ratio=0.5, slots=("norms",)), "'norms' is not made of matrices"),
    ],
)
def test_what_cannot_be_folded_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        build(**fields)
