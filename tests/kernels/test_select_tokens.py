"""The k best tokens of a row, against a sort; and those above a threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels.select_tokens import SELECT, gpu, select_above, select_tokens, tpu
from tests.helpers.kernels import MACHINES, TPU, assert_compiles
from tests.helpers.refusals import refused

KERNELS = {
    "tpu": lambda scores, k: tpu.select(scores, k=k, interpret=TPU),
    "gpu": lambda scores, k: gpu.select(scores, k=k, interpret=True),
}
FEW = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 0.5, 1e-30], np.float32)


def by_sorting(scores, k):
    """The oracle: a stable sort of each row, the greatest first."""
    scores = np.asarray(scores, np.float32)
    rank = np.where(np.isnan(scores), 2.0, np.sign(scores) * (scores != 0))
    order = [sorted(range(row.size), key=lambda t: (-r[t], -row[t] if r[t] < 2 else 0))
             for row, r in zip(scores, rank, strict=True)]  # fmt: skip
    return np.sort(np.array(order).reshape(scores.shape)[:, :k], axis=1)


def draw(kind, batch, length, dtype=jnp.float32):
    rng = np.random.default_rng(length)
    if kind == "few":
        return jnp.asarray(rng.choice(FEW, (batch, length)), dtype)
    if kind == "equal":
        return jnp.full((batch, length), -3.0, dtype)
    return jnp.asarray(rng.normal(size=(batch, length)), dtype)


SIZES = [(1, 1, 1), (2, 3, 2), (9, 130, 43), (3, 128, 127), (1, 2100, 1400)]


@pytest.mark.parametrize("batch, length, k", SIZES)
@pytest.mark.parametrize("kind", ["few", "equal", "normal"])
def test_the_best_are_the_first_of_a_stable_sort(kind, batch, length, k):
    scores = draw(kind, batch, length)
    chosen = select_tokens(scores, k)
    assert chosen.dtype == jnp.int32
    np.testing.assert_array_equal(chosen, by_sorting(scores, k))


@pytest.mark.parametrize("batch, length, k", SIZES)
@pytest.mark.parametrize("kind", ["few", "normal"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_choose_as_the_reference(kernel, kind, batch, length, k):
    scores = draw(kind, batch, length)
    np.testing.assert_array_equal(KERNELS[kernel](scores, k), select_tokens(scores, k))


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_choose_from_bfloat16_and_among_equals(kernel):
    for scores in (draw("normal", 2, 128, jnp.bfloat16), draw("equal", 2, 128, jnp.bfloat16)):
        np.testing.assert_array_equal(KERNELS[kernel](scores, 43), by_sorting(scores, 43))


def test_a_row_longer_than_registers_is_chosen_from_in_parts(monkeypatch):
    monkeypatch.setattr(gpu, "CHUNK", 64)
    for kind in ("few", "normal"):
        scores = draw(kind, 2, 200)
        np.testing.assert_array_equal(KERNELS["gpu"](scores, 77), by_sorting(scores, 77))


@pytest.mark.parametrize("k", [0, 5])
def test_none_and_all_need_no_choice(k):
    np.testing.assert_array_equal(select_tokens(draw("few", 2, 5), k), [[0, 1, 2, 3, 4][:k]] * 2)
    assert select_tokens(jnp.zeros((0, 5)), k).shape == (0, k)


def test_choices_map_over_a_batch_of_rows():
    scores = jnp.stack([draw("normal", 2, 9), draw("few", 2, 9)])
    mapped = jax.vmap(lambda each: select_tokens(each, 4))(scores)
    np.testing.assert_array_equal(mapped, [by_sorting(each, 4) for each in scores])


def test_choices_have_no_gradient_and_let_others_pass():
    def loss(scores):
        index = select_tokens(scores, 2)
        mask, count = select_above(scores, 0.0)
        kept = jnp.take_along_axis(scores, index, axis=1)
        return kept.sum() + jnp.where(mask, scores, 0.0).sum() + count.sum()

    gradient = jax.jit(jax.grad(loss))(jnp.array([[3.0, -1.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(gradient, [[2.0, 0.0, 2.0, 1.0]])


@pytest.mark.parametrize("threshold", [0.0, np.array([0.0, 1.0], np.float32)])
def test_above_is_a_comparison_and_its_count(threshold):
    scores = jnp.array([[0.0, -0.0, -1e-3, np.nan, np.inf], [1.0, 0.5, 2.0, -np.inf, np.nan]])
    mask, count = jax.jit(select_above)(scores, threshold)
    expected = np.asarray(scores) >= np.broadcast_to(threshold, 2)[:, None]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(count, expected.sum(1))
    assert mask.dtype == bool and count.dtype == jnp.int32


def test_errors_say_both_numbers():
    scores = jnp.zeros((2, 5))
    with refused(ValueError, "k must", 5, "got 6"):
        select_tokens(scores, 6)
    with refused(ValueError, "int32", (5,)):
        select_tokens(jnp.zeros(5, int), 1)
    with refused(ValueError, "2 rows", "threshold", (3,)):
        select_above(scores, jnp.zeros(3))
    with refused(ValueError, "cuda", "auto", "reference", "pallas_tpu", "pallas_triton"):
        select_tokens(scores, 1, backend="cuda")


def test_a_row_that_does_not_fit_is_declined_with_its_length():
    scores = jax.ShapeDtypeStruct((1, 200_000), jnp.float32)
    reasons = SELECT.explain(scores, platform="tpu", k=3)
    assert all(number in reasons["pallas_tpu"] for number in ("131072", "200000"))
    assert SELECT.explain(scores, platform="cuda", k=3) == {"pallas_triton": "accepts"}


@pytest.mark.parametrize("machine", MACHINES)
def test_machines_compile_the_kernel(machine, caplog):
    scores = jax.ShapeDtypeStruct((16, 2048), jnp.float32)
    both = lambda scores: (select_tokens(scores, 1365), select_above(scores, 0.0))
    assert_compiles(machine, both, scores, kernels=1)
    assert not caplog.records
