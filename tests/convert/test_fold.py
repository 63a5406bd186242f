"""Folding a trained model: what is chosen, and that choosing nothing changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia.convert import calibration, dissimilar, fitting, gates, groups, heads, recursive
from recursia.kv import Plan
from recursia.sharing.atoms import Atoms
from tests.helpers.tiny import LENGTH, VOCAB, assert_close, draw, forward, is_equal, text, tiny

LAYERS, KEY = 4, jax.random.key(0)


@pytest.fixture(scope="module")
def dense():
    """Returns a dense model of four layers, its parameters, and a batch."""
    config = tiny(sharing_="none", recursions=1, blocks=LAYERS)
    tokens = np.asarray(text())
    along = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    ones = np.ones_like(tokens)
    batch = dict(tokens=tokens, targets=np.roll(tokens, -1, 1), positions=along, segment_ids=ones)
    return config, draw(config), [{**batch, "weights": ones.astype(np.float32)}]


def test_a_group_for_each_layer_is_the_model_to_the_bit(dense):
    config, params, _ = dense
    target = groups.shared(config, groups.contiguous(LAYERS, LAYERS))
    for start in ("first", "average"):
        made = recursive.recursive(params, config, target, start, key=KEY)
        assert is_equal(made, params)


def test_a_group_has_the_weights_of_its_first_layer_and_norms_of_each(dense):
    config, params, _ = dense
    target = groups.shared(config, (0, 0, 0, 1))
    made = recursive.recursive(params, config, target, "first", key=KEY)
    layers = recursive.layers(made, target)
    theirs = recursive.layers(params, config)
    for layer, source in enumerate((0, 0, 0, 3)):
        assert is_equal(layers[layer]["mlp"], theirs[source]["mlp"])
        assert is_equal(layers[layer]["attention"], theirs[source]["attention"])
        assert is_equal(layers[layer]["norms"], theirs[layer]["norms"])


def test_the_neighbours_most_alike_are_one_group():
    alike = np.array([[1, 0.2, 0.1, 0], [0.2, 1, 0.9, 0.3], [0.1, 0.9, 1, 0.7], [0, 0.3, 0.7, 1]])
    assert groups.clustered(alike, 4) == (0, 1, 2, 3)
    assert groups.clustered(alike, 3) == (0, 1, 1, 2)
    assert groups.clustered(alike, 2) == (0, 1, 1, 1)
    assert groups.contiguous(5, 2) == (0, 0, 0, 1, 1)


def test_alignment_does_not_see_rotation_or_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 1
    found = groups.alignment(np.stack([x, turned, rng.normal(size=(50, 6))]))
    assert abs(found[0, 1] - 1) < 1e-9 and found[0, 2] < 0.5


def test_gates_of_one_are_the_model_and_of_zero_leave_the_layer_out(dense):
    config, params, _ = dense
    with_gates, plain = gates.gated(config), calibration.by_layer(config)
    run = jax.jit(
        lambda g: (
            model.apply({**params, "depth": {"gates": g}}, text(), with_gates, mode="eval").hidden
        )
    )
    assert is_equal(run(jnp.ones(LAYERS)), model.apply(params, text(), plain, mode="eval").hidden)
    fewer, rest = gates.without(params, config, [0, 1, 3])
    left_out = model.apply(rest, text(), fewer, mode="eval").hidden
    assert_close(run(jnp.array([1.0, 1.0, 0.0, 1.0])), left_out)


@pytest.mark.parametrize("keep", [1, 2, 3, 6])
def test_projected_gates_are_the_nearest_within_the_flops(keep):
    rng = np.random.default_rng(keep)
    given = rng.normal(0.5, 1, 6).astype(np.float32)
    found = np.asarray(gates.projected(jnp.asarray(given), keep))
    assert found.min() >= 0 and found.max() <= 1 and found.sum() <= keep + 1e-5
    for _ in range(300):  # no other gates within the bound are nearer
        other = rng.uniform(0, 1, 6)
        other *= min(1, keep / other.sum())
        assert np.sum((found - given) ** 2) <= np.sum((other - given) ** 2) + 1e-5


def test_learned_gates_stay_within_the_flops(dense):
    config, params, batches = dense
    found = gates.learned(params, config, batches, 2, 3)
    assert found.shape == (LAYERS,) and found.sum() <= 2 + 1e-5


@pytest.mark.slow
def test_a_cosine_of_one_shares_nothing_and_a_low_one_what_was_asked_for(dense):
    config, params, batches = dense
    same, weights, trials = dissimilar.search(params, config, batches, 2, 1.0)
    assert same == config and weights is params and not trials
    found, weights, trials = dissimilar.search(params, config, batches, 1, -1.0)
    (trial,) = trials
    keys = calibration.keys(params, config, batches)
    farthest = max(np.linalg.norm(keys[a] - keys[b]) for a in range(4) for b in range(a))
    assert trial.is_kept and trial.owner < trial.reader
    np.testing.assert_allclose(trial.distance, farthest, rtol=1e-5)
    owners = list(range(LAYERS))
    owners[trial.reader] = trial.owner
    assert found.kv == Plan((tuple(owners),))
    assert weights["core"]["attention"]["key"].shape[0] == LAYERS - 1
    assert weights["core"]["attention"]["query"].shape[0] == LAYERS


def test_what_fits_into_another_architecture_is_copied_and_the_rest_is_named(dense):
    config, params, _ = dense
    made, new = fitting.fitting(params, config, config, "first", key=KEY)
    assert is_equal(made, params) and not new
    wide = dataclasses.replace(config.block.mixer, num_heads=2, num_kv_heads=1)
    other = dataclasses.replace(config, block=dataclasses.replace(config.block, mixer=wide))
    made, new = fitting.fitting(params, config, other, "first", key=KEY)
    assert new == [f"core.attention.{name}" for name in ("key", "out", "query", "value")]
    for section in ("embed", "final_norm"):
        assert is_equal(made[section], params[section])
    for slot in ("norms", "mlp"):
        assert is_equal(made["core"][slot], params["core"][slot])
    forward(made, text(), other)
    fewer = dataclasses.replace(config, num_layers=3)
    with pytest.raises(ValueError, match=r"num_layers: got 3, and .* has 4"):
        fitting.fitting(params, config, fewer, "first", key=KEY)


def test_a_model_of_atoms_is_folded_as_the_dense_one(dense):
    config, params, _ = dense
    atoms = dataclasses.replace(config, weights=Atoms(LAYERS))
    made = recursive.recursive(params, config, atoms, "first", key=KEY)
    plain, back = calibration.dense(made, atoms)
    assert plain.vocab_size == VOCAB and is_equal(back, params)


def test_heads_take_the_weights_of_the_most_similar_below(dense):
    config, params, _ = dense
    slot, key_heads = params["core"]["attention"], config.block.mixer.num_kv_heads
    found, each = heads.units(params, config), config.block.mixer.num_heads // key_heads
    for unit in range(LAYERS * key_heads):
        layer, place = divmod(unit, key_heads)
        queries = slice(place * each, (place + 1) * each)
        assert is_equal(found["key"][unit][:, 0], slot["key"][layer][:, place])
        assert is_equal(found["query"][unit], slot["query"][layer][:, queries])
        assert is_equal(found["out"][unit], slot["out"][layer][queries])
    alike = np.array(
        [[1, 0.9, 0.2, 0.8], [0.9, 1, 0.1, 0.5], [0.2, 0.1, 1, 0.9], [0.8, 0.5, 0.9, 1]]
    )
    assert heads.chosen(alike, 2, 1) == (0, 1, 2, 0)  # of one layer none takes those of another
    assert heads.chosen(alike, 2, 2) == (0, 1, 0, 0)
    target, same = heads.shared(params, config, tuple(range(LAYERS * key_heads)))
    assert is_equal(forward(same, text(), target), forward(params, text(), config))
    owners = (*range(LAYERS * key_heads - 1), 0)
    target, made = heads.shared(params, config, owners)
    assert made["core"]["attention_heads"]["key"].shape[0] == LAYERS * key_heads - 1
    last = recursive.layers(made, target)[-1]
    assert is_equal(last["attention"]["key"][:, -1], slot["key"][0][:, 0])
    assert is_equal(last["attention"]["value"][:, 0], slot["value"][-1][:, 0])
