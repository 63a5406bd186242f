"""Rows back into a sequence: repeats add up in order, in float32, and all gradients in one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from recursia.kernels.gather_tokens import gather_tokens
from recursia.kernels.gather_tokens import tpu as gather_tpu
from recursia.kernels.scatter_tokens import COLLECT, SCATTER, gpu, reference, scatter_tokens, tpu
from tests.helpers.kernels import MACHINES, TPU, assert_compiles, tolerance
from tests.helpers.refusals import refused

KERNELS = {"tpu": (tpu, TPU), "gpu": (gpu, True)}
SIZES = [(1, 1, 1, 1), (2, 5, 3, 16), (1, 3, 7, 200), (2, 33, 2, 40)]  # B T C D
CASES = [*((sizes, jnp.float32) for sizes in SIZES), *((s, jnp.bfloat16) for s in SIZES[1:3])]


def draw(batch, length, count, width, dtype):
    rng = np.random.default_rng(width)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    index = jnp.asarray(rng.integers(0, length, (batch, count)), jnp.int32)
    gate = normal(batch, count).astype(jnp.float32)
    return normal(batch, length, width), index, normal(batch, count, width), gate


def one_by_one(y, index, update, gate):
    """The oracle: a loop over rows, in float32."""
    out = np.array(y, np.float32)
    for b, c in np.ndindex(index.shape):
        factor = np.float32(1.0 if gate is None else gate[b, c])
        out[b, index[b, c]] += factor * np.asarray(update[b, c], np.float32)
    return out.astype(y.dtype)


@pytest.mark.parametrize("sizes, dtype", CASES)
@pytest.mark.parametrize("gated", [True, False])
def test_rows_are_added_at_the_index(sizes, dtype, gated):
    y, index, update, gate = draw(*sizes, dtype)
    gate = gate if gated else None
    out = scatter_tokens(y, index, update, gate)
    assert out.dtype == dtype
    expected = one_by_one(y, index, update, gate).astype(np.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, **tolerance(dtype, sizes[2]))


@pytest.mark.parametrize(
    "sizes, dtype, given",
    [
        *((*case, "both") for case in CASES),
        (SIZES[1], jnp.float32, "y"),
        (SIZES[3], jnp.bfloat16, "gate"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_add_as_the_reference(kernel, sizes, given, dtype):
    module, interpret = KERNELS[kernel]
    y, index, update, gate = draw(*sizes, dtype)
    args = y if given != "gate" else None, index, update, gate if given != "y" else None
    for is_sorted in (False, True):
        args = (args[0], jnp.sort(index) if is_sorted else index, *args[2:])
        static = {"length": sizes[1], "is_sorted": is_sorted}
        out = module.scatter(*args, **static, interpret=interpret)
        expected = reference.scatter(*args, **static)
        assert out.dtype == expected.dtype
        out, expected = (np.asarray(each, np.float32) for each in (out, expected))
        np.testing.assert_allclose(out, expected, **tolerance(dtype, sizes[2]))
        if kernel == "tpu":
            break  # which takes no notice


@pytest.mark.parametrize("sizes, dtype", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_collect_both_gradients_as_the_reference(kernel, sizes, dtype):
    module, interpret = KERNELS[kernel]
    args = draw(*sizes, dtype)
    for ours, theirs in zip(
        module.collect(*args, interpret=interpret), reference.collect(*args), strict=True
    ):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(each, np.float32) for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, **tolerance(jnp.float32, sizes[3]))


def test_slabs_and_steps_add_up(monkeypatch):
    monkeypatch.setattr(gather_tpu, "LANES", 16)
    monkeypatch.setattr(gather_tpu, "BLOCK", 16)
    monkeypatch.setattr(gather_tpu, "BUDGET", 16_000)
    y, index, update, gate = draw(1, 35, 20, 40, jnp.bfloat16)
    for row_bytes, block_bytes in ((12, 12), (6, 24)):
        cut = gather_tpu.plan(35, 20, 40, row_bytes, block_bytes)
        assert (cut.count, cut.steps, cut.lanes, cut.slabs) == (16, 2, 16, 3)
    static = {"length": 35, "is_sorted": False}
    ours = tpu.scatter(y, index, update, gate, **static, interpret=TPU)
    # A processor may multiply and add in one, and round once.
    theirs = reference.scatter(y, index, update, gate, **static)
    near = tolerance(jnp.bfloat16, 20)
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), **near)
    ours = tpu.collect(y, index, update, gate, interpret=TPU)
    theirs = reference.collect(y, index, update, gate)
    rows = (np.asarray(each[0], np.float32) for each in (ours, theirs))
    np.testing.assert_allclose(*rows, **near)
    np.testing.assert_allclose(ours[1], theirs[1], **tolerance(jnp.float32, 40))


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_repeats_are_rounded_once(kernel):
    y = jnp.asarray([[[256.0], [7.0]]], jnp.bfloat16)
    index, update = jnp.array([[0, 0]], jnp.int32), jnp.ones((1, 2, 1), jnp.bfloat16)
    module, interpret = KERNELS.get(kernel, (reference, None))
    more = {} if interpret is None else {"interpret": interpret}
    out = module.scatter(y, index, update, None, length=2, is_sorted=True, **more)
    np.testing.assert_array_equal(out, [[[258.0], [7.0]]])  # 257 is not in bfloat16


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_what_is_not_finite_stays_in_its_row(kernel):
    y, index, update, gate = draw(1, 9, 4, 5, jnp.float32)
    index, update = jnp.array([[1, 3, 4, 8]], jnp.int32), update.at[:, 1].set(jnp.nan)
    module, interpret = KERNELS.get(kernel, (reference, None))
    more = {} if interpret is None else {"interpret": interpret}
    out = module.scatter(y, index, update, gate, length=9, is_sorted=True, **more)
    np.testing.assert_array_equal(np.isnan(out).all(-1)[0], np.arange(9) == 3)
    np.testing.assert_array_equal(np.isnan(out).any(-1)[0], np.arange(9) == 3)
    rows, to_gate = module.collect(out, index, update.at[:, 1].set(0.0), gate, **more)
    np.testing.assert_array_equal(np.isnan(rows).any(-1)[0], np.arange(4) == 1)
    np.testing.assert_array_equal(np.isnan(to_gate)[0], np.arange(4) == 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
def test_gradients_are_those_of_the_plain_formula(dtype, gated):
    y, index, update, gate = draw(2, 5, 7, 16, dtype)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(dtype)

    def plain(y, update, gate):
        rows = update.astype(jnp.float32) * (1 if gate is None else gate[..., None])
        out = y.astype(jnp.float32).at[jnp.arange(2)[:, None], index].add(rows)
        return out.astype(dtype)

    ours = lambda y, update, gate: scatter_tokens(y, index, update, gate)
    args = y, update, gate if gated else None
    one, other = (jax.vjp(f, *args)[1](cotangent) for f in (ours, plain))
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert mine.dtype == theirs.dtype
        mine, theirs = (np.asarray(each, np.float32) for each in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, **tolerance(dtype, 16))


def test_gradients_are_those_of_finite_differences():
    y, index, update, gate = draw(2, 4, 5, 3, jnp.float32)
    f = lambda y, update, gate: jnp.sin(scatter_tokens(y, index, update, gate))
    check_grads(f, (y, update, gate), order=1, modes=["rev"])


def test_the_gate_keeps_its_dtype_and_the_update_its_own():
    y, index, update, gate = draw(1, 4, 2, 3, jnp.float32)
    half, quarter = update.astype(jnp.bfloat16), gate.astype(jnp.bfloat16)
    for gate in (quarter, None):
        f = lambda update, gate: scatter_tokens(y, index, update, gate).sum()
        gradients = jax.grad(f, argnums=(0, 1))(half, gate)
        assert all(each.dtype == jnp.bfloat16 for each in jax.tree.leaves(gradients))


def test_scattering_what_a_permutation_gathered_gives_it_back():
    x = draw(2, 9, 1, 4, jnp.bfloat16)[0]
    index = jnp.stack([jax.random.permutation(jax.random.key(seed), 9) for seed in range(2)])
    back = scatter_tokens(jnp.zeros_like(x), index, gather_tokens(x, index))
    np.testing.assert_array_equal(back, x)


def test_scatter_and_gather_are_transposes():
    y, index, update, _ = draw(2, 6, 9, 4, jnp.float32)
    onto = scatter_tokens(jnp.zeros_like(y), index, update)
    out = gather_tokens(y, index)
    np.testing.assert_allclose(jnp.vdot(onto, y), jnp.vdot(update, out), rtol=1e-5)


def test_nothing_added_changes_nothing():
    y = jnp.ones((2, 3, 4))
    index, update = jnp.zeros((2, 0), int), jnp.zeros((2, 0, 4))
    np.testing.assert_array_equal(scatter_tokens(y, index, update, jnp.zeros((2, 0))), y)


def test_errors_say_both_shapes():
    y, index = jnp.zeros((2, 3, 4)), jnp.zeros((2, 2), int)
    update = jnp.zeros((2, 2, 4))
    scatter = functools.partial(scatter_tokens, y, index)
    with refused(ValueError, "update", (2, 2, 4), (2, 2, 5)):
        scatter(jnp.zeros((2, 2, 5)))
    with refused(ValueError, "gate", (2, 2), (2, 3)):
        scatter(update, jnp.zeros((2, 3)))
    with refused(ValueError, (2, 3, 4), (1, 2)):
        scatter_tokens(y, index[:1], update)
    with refused(ValueError, "y has 0", "index has 2"):
        scatter_tokens(y[:, :0], index, update)


def test_what_kernels_do_not_add_is_declined():
    shape = lambda *dims, dtype=jnp.float32: jax.ShapeDtypeStruct(dims, dtype)
    index, half = shape(1, 2, dtype=jnp.int32), shape(1, 2, 8, dtype=jnp.float16)
    static = {"length": 9, "is_sorted": True}
    told = lambda platform: SCATTER.explain(None, index, half, None, platform=platform, **static)
    assert "float16" in told("tpu")["pallas_tpu"]
    assert told("cuda") == {"pallas_triton": "accepts"}
    told = COLLECT.explain(shape(1, 100_000, 8), index, half, shape(1, 2), platform="tpu")
    assert "100000 rows" in told["pallas_tpu"]


@pytest.mark.parametrize("machine", MACHINES)
def test_machines_compile_the_kernel_and_its_gradients(machine, caplog):
    shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype)
    y, update = shape(2, 2048, 960), shape(2, 1365, 960)
    index, gate = shape(2, 1365, dtype=jnp.int32), shape(2, 1365, dtype=jnp.float32)

    def there_and_back(y, index, update, gate):
        f = functools.partial(scatter_tokens, is_sorted=True)
        out, pull = jax.vjp(lambda y, update, gate: f(y, index, update, gate), y, update, gate)
        return out, pull(out)

    assert_compiles(machine, there_and_back, y, index, update, gate, kernels=2)
    assert not caplog.records
