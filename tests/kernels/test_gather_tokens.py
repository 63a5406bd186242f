"""Rows out of a sequence: bit for bit, in any order, and the way back of their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from recursia.kernels.gather_tokens import GATHER, gather_tokens, gpu, tpu
from tests.helpers.kernels import MACHINES, TPU, assert_compiles
from tests.helpers.refusals import refused

KERNELS = {
    "tpu": lambda x, index: tpu.gather(x, index, interpret=TPU),
    "gpu": lambda x, index: gpu.gather(x, index, interpret=True),
}
SIZES = [(1, 1, 1, 1), (2, 5, 3, 16), (1, 3, 7, 200), (2, 33, 1, 40)]  # B T C D
CASES = [*((sizes, jnp.float32) for sizes in SIZES), *((s, jnp.bfloat16) for s in SIZES[1:3])]


def draw(batch, length, count, width, dtype):
    rng = np.random.default_rng(width)
    x = jnp.asarray(rng.normal(size=(batch, length, width)), dtype)
    return x, jnp.asarray(rng.integers(0, length, (batch, count)), jnp.int32)


def bits(x):
    return np.asarray(x).view({2: np.int16, 4: np.int32}[x.dtype.itemsize])


@pytest.mark.parametrize("sizes, dtype", CASES)
def test_rows_are_those_at_the_index(sizes, dtype):
    x, index = draw(*sizes, dtype)
    rows = gather_tokens(x, index)
    for b in range(sizes[0]):
        np.testing.assert_array_equal(bits(rows[b]), bits(x)[b][np.asarray(index[b])])


@pytest.mark.parametrize("sizes, dtype", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_move_the_same_bits(kernel, sizes, dtype):
    x, index = draw(*sizes, dtype)
    # One row is all that a sum would spoil, and must spoil no other.
    odd = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 1e-30], dtype)[np.arange(sizes[3]) % 5]
    x = x.at[:, 0].set(odd)
    np.testing.assert_array_equal(bits(KERNELS[kernel](x, index)), bits(gather_tokens(x, index)))


def test_a_sequence_wider_than_memory_is_cut_into_slabs(monkeypatch):
    monkeypatch.setattr(tpu, "LANES", 16)
    monkeypatch.setattr(tpu, "BLOCK", 16)
    monkeypatch.setattr(tpu, "BUDGET", 7_000)
    x, index = draw(1, 35, 20, 40, jnp.bfloat16)
    cut = tpu.plan(48, 20, 40, 6, 6)
    assert (cut.count, cut.steps, cut.lanes, cut.slabs) == (16, 2, 16, 3)
    np.testing.assert_array_equal(bits(KERNELS["tpu"](x, index)), bits(gather_tokens(x, index)))


@pytest.mark.parametrize("length", [2048, 8192])
@pytest.mark.parametrize("width", [40, 960, 2048])
def test_slabs_cover_the_width_and_fit(length, width):
    cut = tpu.plan(length, 1365, width, 6, 6)
    assert cut.held <= tpu.BUDGET and cut.count * cut.steps >= 1365
    assert (cut.slabs - 1) * cut.lanes < width <= cut.slabs * cut.lanes


@pytest.mark.parametrize("is_sorted", [False, True])
def test_the_gradient_adds_up_the_rows_of_one_place(is_sorted):
    x = jnp.zeros((1, 4, 2))
    index = jnp.array([[0, 2, 2]] if is_sorted else [[2, 0, 2]])
    rows = jnp.array([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    _, pull = jax.vjp(lambda x: gather_tokens(x, index, is_sorted=is_sorted), x)
    expected = [[[1, 10], [0, 0], [6, 60], [0, 0]], [[2, 20], [0, 0], [5, 50], [0, 0]]]
    np.testing.assert_array_equal(pull(rows)[0], [expected[0 if is_sorted else 1]])


def test_gradients_are_those_of_finite_differences():
    x, index = draw(2, 5, 7, 3, jnp.float32)
    check_grads(lambda x: jnp.sin(gather_tokens(x, index)), (x,), order=1, modes=["rev"])


def test_the_gradient_is_rounded_once():
    x = jnp.zeros((1, 1, 1), jnp.bfloat16)
    rows = jnp.asarray([[[256.0], [1.0], [1.0]]], jnp.bfloat16)  # 257 is not in bfloat16; 258 is
    _, pull = jax.vjp(lambda x: gather_tokens(x, jnp.zeros((1, 3), int)), x)
    assert pull(rows)[0] == 258.0


@pytest.mark.parametrize("batch, length, count, width", [(0, 3, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0)])
def test_nothing_of_nothing(batch, length, count, width):
    x, index = jnp.ones((batch, length, width)), jnp.zeros((batch, count), int)
    value, pull = jax.vjp(lambda x: gather_tokens(x, index), x)
    assert value.shape == (batch, count, width)
    np.testing.assert_array_equal(pull(value)[0], jnp.zeros_like(x))


def test_gathers_map_over_a_batch():
    x, index = draw(3, 5, 4, 2, jnp.float32)
    one = lambda x, index: gather_tokens(x[None], index[None])[0]
    np.testing.assert_array_equal(jax.vmap(one)(x, index), gather_tokens(x, index))


def test_errors_say_both_shapes():
    with refused(ValueError, (2, 3, 4), (1, 2)):
        gather_tokens(jnp.zeros((2, 3, 4)), jnp.zeros((1, 2), int))
    with refused(ValueError, "x has 0", "index has 2"):
        gather_tokens(jnp.zeros((1, 0, 4)), jnp.zeros((1, 2), int))


def test_what_a_tpu_does_not_move_is_declined():
    index = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    told = lambda length, dtype: GATHER.explain(
        jax.ShapeDtypeStruct((1, length, 8), dtype), index, platform="tpu"
    )["pallas_tpu"]
    assert "float16" in told(8, jnp.float16) and "100000 rows" in told(100_000, jnp.bfloat16)
    assert told(8192, jnp.bfloat16) == "accepts"


@pytest.mark.parametrize("machine", MACHINES)
def test_machines_compile_the_kernel_and_its_gradient(machine, caplog):
    x = jax.ShapeDtypeStruct((2, 2048, 960), jnp.bfloat16)
    index = jax.ShapeDtypeStruct((2, 682), jnp.int32)

    def there_and_back(x, index):
        rows, pull = jax.vjp(lambda x: gather_tokens(x, index, is_sorted=True), x)
        return pull(2 * rows)

    assert_compiles(machine, there_and_back, x, index, kernels=2)
    assert not caplog.records
