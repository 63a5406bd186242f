"""A score is what numpy makes of the same logits, however the rows are batched and spread."""

import math

import jax
import numpy as np
import pytest

from recursia import scores, sharding
from recursia.errors import DataError
from tests.helpers.batches import nats, whole_rows
from tests.helpers.tiny import VOCAB, draw, forward, tiny

ROWS, LENGTH = 8, 12
BYTES = np.random.default_rng(7).integers(0, 6, VOCAB).astype(np.int32)
BYTES[[0, 5]] = 0  # special tokens stand for no text
MODELS = {"fixed": tiny(recursions=2, blocks=1), "routed": tiny("expert_choice", recursions=2)}


def data(seed=0):
    """Returns rows with tokens that do not count, and a row of padding only."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    weights = (rng.random((ROWS, LENGTH)) < 0.8).astype(np.float32)
    weights[-1] = 0
    return whole_rows(tokens, weights)


def batches(rows, size):
    for first in range(0, ROWS, size):
        yield {name: value[first : first + size] for name, value in rows.items()}


def score(config, rows, size=ROWS, devices=1, mode="eval"):
    mesh = sharding.MeshConfig()
    where = sharding.make_mesh(mesh, jax.devices()[:devices])
    params = draw(config)
    return scores.score(
        params, config, batches(rows, size), BYTES, mode=mode, mesh=where, rules=mesh.rules
    )


def by_hand(logits, depth, rows):
    """Returns nats, tokens, bytes and recursions as sums over the tokens that count."""
    counts = rows["weights"] == 1
    sizes = sum(int(BYTES[i]) for i in rows["targets"][counts])
    return (
        nats(logits, rows["targets"])[counts].sum(),
        counts.sum(),
        sizes,
        np.asarray(depth)[counts].sum(),
    )


@pytest.mark.parametrize(
    ("name", "mode"), [("fixed", "eval"), ("routed", "eval"), ("routed", "causal")]
)
def test_a_score_is_what_numpy_makes_of_the_logits(name, mode):
    config, rows = MODELS[name], data()
    logits, aux = forward(draw(config), rows["tokens"], config, mode)
    total, tokens, sizes, depth = by_hand(logits, aux.depth_used, rows)
    found = score(config, rows, mode=mode)
    assert found.tokens == tokens < ROWS * LENGTH
    assert math.isclose(found.nats_per_token, total / tokens, rel_tol=1e-5)
    assert math.isclose(found.bits_per_byte, total / math.log(2) / sizes, rel_tol=1e-5)
    assert math.isclose(found.mean_depth, depth / tokens, rel_tol=1e-6)
    # Without a coda, the head reads what the last recursion leaves.
    assert len(found.lens_nats_per_token) == 2
    assert math.isclose(found.lens_nats_per_token[-1], found.nats_per_token, rel_tol=1e-6)
    assert not math.isclose(found.lens_nats_per_token[0], found.nats_per_token, rel_tol=1e-3)


@pytest.mark.parametrize(("size", "devices"), [(2, 1), (8, 8)])
def test_a_score_does_not_depend_on_batches_and_devices(size, devices):
    config, rows = MODELS["routed"], data()
    whole, other = score(config, rows), score(config, rows, size, devices)
    assert other.tokens == whole.tokens
    for name in ("nats_per_token", "bits_per_byte", "mean_depth"):
        assert math.isclose(getattr(other, name), getattr(whole, name), rel_tol=1e-5), name
    assert np.allclose(other.lens_nats_per_token, whole.lens_nats_per_token, rtol=1e-5)


def test_what_stands_where_nothing_counts_does_not_matter():
    config, rows = MODELS["fixed"], data()
    changed = {**rows, "targets": np.where(rows["weights"] == 1, rows["targets"], 3)}
    assert score(config, changed) == score(config, rows)


def test_a_text_without_a_token_to_predict_is_refused():
    rows = data()
    rows["weights"][:] = 0
    with pytest.raises(DataError, match="0 tokens"):
        score(MODELS["fixed"], rows)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    with pytest.raises(DataError, match="0 tokens"):
        rules = sharding.MeshConfig().rules
        scores.score({}, MODELS["fixed"], [], BYTES, mode="eval", mesh=mesh, rules=rules)
