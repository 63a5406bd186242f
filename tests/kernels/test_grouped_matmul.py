"""Grouped products equal loops over groups, in every form and on every machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels.grouped_matmul import (
    MATMUL,
    OUTER,
    Groups,
    Rows,
    combine,
    combine_matmul,
    dispatch,
    dispatch_matmul,
    group_choices,
    grouped_matmul,
    of_each,
)
from tests.helpers.kernels import (
    NEEDS_INTERPRETER,
    backend,
    normal,
    run_interpreted,
    tolerance,
)
from tests.helpers.refusals import refused

# Rows of each group, rows of none, width of a row, width of a product.
SHAPES = {
    "one_row": ((1,), 0, 1, 1),
    "empty_groups_around": ((0, 5, 0, 0, 3, 0), 0, 5, 9),
    "more_groups_than_rows": ((0, 1, 0, 1, 1, 0, 0), 1, 8, 8),
    "one_group_has_all": ((0, 0, 256), 0, 16, 40),
    "no_group_has_any": ((0, 0, 0), 140, 8, 12),
    "some_in_no_group": ((40, 0, 3), 27, 8, 12),
    "several_blocks": ((130, 3, 0, 2, 155, 1), 93, 72, 20),  # which end within some
    "whole_lanes": ((0, 99, 0, 28), 0, 128, 256),
}
KERNELS = "reference", "megablox", pytest.param("mosaic_gpu", marks=NEEDS_INTERPRETER)
CASES = [(shape, jnp.float32) for shape in SHAPES if shape != "empty_groups_around"]
CASES += [("empty_groups_around", jnp.bfloat16), ("several_blocks", jnp.bfloat16)]
CASES = [(kernel, *case) for kernel in ("reference", "megablox") for case in CASES]
OF_GPU = [("one_row", jnp.float32), ("some_in_no_group", jnp.float32)]
OF_GPU += [("no_group_has_any", jnp.float32), ("several_blocks", jnp.bfloat16)]
# Few: an interpreter of every copy takes its time.
CASES += [pytest.param("mosaic_gpu", *case, marks=NEEDS_INTERPRETER) for case in OF_GPU]


def wide(a):
    return np.asarray(a.astype(jnp.float32), np.float64)


def by_group(sizes):
    """Yields each group and the slice of its rows."""
    for group, stop in enumerate(np.cumsum(sizes)):
        yield group, slice(stop - sizes[group], stop)


def products(rows, bank, sizes):
    pieces = [wide(rows)[at] @ wide(bank)[group] for group, at in by_group(sizes)]
    return np.concatenate(pieces)


def outers(left, right, sizes):
    return np.stack([wide(left)[at].T @ wide(right)[at] for _, at in by_group(sizes)])


def assert_near(ours, expected, dtype, length):
    """Asserts equality of sums of products of about one, whose parts grow as their root does."""
    assert ours.shape == expected.shape and ours.dtype == dtype
    scale = np.sqrt(max(1, length))
    np.testing.assert_allclose(wide(ours) / scale, expected / scale, **tolerance(dtype, length))


@pytest.mark.few(4)
@pytest.mark.parametrize(("kernel", "shape", "dtype"), CASES)
def test_rows_meet_their_groups_entry_and_those_of_no_group_are_zero_and_not_read(
    kernel, shape, dtype
):
    matmul, outer = (backend(op, kernel) for op in (MATMUL, OUTER))
    sizes, behind, inner, width = SHAPES[shape]
    count, bank = sum(sizes), normal(len(sizes), inner, width, dtype=dtype)
    rows, back = normal(count, inner, dtype=dtype), normal(count, width, dtype=dtype)

    @jax.jit
    def run(rows, back, sizes):
        rows, back = Rows(rows), Rows(back)
        products = matmul(rows, bank, sizes), matmul(back, bank, sizes, contracted=2)
        return *products, outer(rows, back, sizes)

    fill = {"pad_width": ((0, behind), (0, 0)), "constant_values": jnp.nan}
    spoilt = (jnp.pad(a, **fill) for a in (rows, back))
    forward, backward, outer_sums = run(*spoilt, jnp.array(sizes))
    assert not forward[count:].any() and not backward[count:].any()
    assert_near(forward[:count], products(rows, bank, sizes), dtype, inner)
    assert_near(backward[:count], products(back, bank.swapaxes(1, 2), sizes), dtype, width)
    assert_near(outer_sums, outers(rows, back, sizes), jnp.float32, max(sizes))
    assert not outer_sums[np.array(sizes) == 0].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_taken_from_where_they_are(kernel):
    matmul, outer = (backend(op, kernel) for op in (MATMUL, OUTER))
    sizes = jnp.array([7, 0, 40, 3])
    x, bank, right = normal(9, 24), normal(4, 24, 12), normal(50, 12)
    take = jnp.asarray(np.random.default_rng(0).integers(0, 9, 50))  # some often, in any order

    @jax.jit
    def run(sizes, take):
        taken, others = Rows(x, take), Rows(right)
        sums = outer(taken, others, sizes), outer(others, taken, sizes)
        return matmul(taken, bank, sizes), *sums

    y, left_sums, right_sums = run(sizes, take)
    assert_near(y, products(x[take], bank, sizes), x.dtype, 24)
    assert_near(left_sums, outers(x[take], right, sizes), x.dtype, 40)
    assert_near(right_sums, outers(right, x[take], sizes), x.dtype, 40)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_stays_in_its_group(kernel):
    matmul, outer = (backend(op, kernel) for op in (MATMUL, OUTER))
    sizes = jnp.array([5, 2, 6])
    rows, bank = normal(13, 8), normal(3, 8, 4)
    each = lambda rows: (matmul(rows, bank, sizes), outer(rows, rows, sizes))
    run = jax.jit(lambda rows: each(Rows(rows)))
    (y, sums), (expected, expected_sums) = run(rows.at[5:7].set(jnp.nan)), run(rows)
    others = np.r_[0:5, 7:13]
    assert np.isnan(y[5:7]).all() and (y[others] == expected[others]).all()
    assert np.isnan(sums[1]).all() and (sums[::2] == expected_sums[::2]).all()


@jax.custom_vjp
def spoil(rows, is_in):
    """Returns rows, and their gradient, with NaN where they are in no group."""
    return jnp.where(is_in[:, None], rows, jnp.nan)


spoil.defvjp(
    lambda rows, is_in: (spoil(rows, is_in), is_in), lambda is_in, g: (spoil(g, is_in), None)
)


@pytest.mark.parametrize(
    ("platform", "dtype"),
    [
        (None, jnp.float32),
        (None, jnp.bfloat16),
        ("tpu", jnp.float32),
        pytest.param("cuda", jnp.float32, marks=NEEDS_INTERPRETER, id="mosaic_gpu"),
    ],
)
def test_ops_and_their_gradients_are_those_of_the_choices_in_groups(monkeypatch, platform, dtype):
    tokens, k, num_groups, inner, width = 47, 3, 4, 6, 10
    x, g = normal(tokens, inner), normal(tokens, inner, seed=9)
    up = normal(num_groups, inner, width)
    down, weights = normal(num_groups, width, inner), normal(tokens, k)
    x, up, down, bias, g = (a.astype(dtype) for a in (x, up, down, normal(num_groups, inner), g))
    probes = tuple(jnp.zeros((tokens * k, size), dtype) for size in (width, inner, width, inner))
    if platform:
        run_interpreted(monkeypatch, platform)

    @jax.jit
    def ours(index, *args):
        groups = group_choices(index, num_groups)
        is_in = jnp.arange(tokens * k) < groups.sizes.sum()
        entry = index.reshape(-1)[groups.order]

        def run(x, up, down, bias, weights, probes):
            first, second, third, fourth = probes
            rows, copies = dispatch_matmul(x, up, groups), dispatch(x, groups)
            y = grouped_matmul(spoil(rows, is_in) + first, down, groups.sizes)
            y += of_each(bias, entry, groups.sizes)
            total = combine(spoil(y, is_in) + second, groups, weights)
            total += combine_matmul(spoil(rows, is_in) + third, down, groups, weights)
            total += combine(spoil(copies, is_in) + fourth, groups, weights)
            return total, (rows, copies, y)

        value, vjp, rows = jax.vjp(run, *args, probes, has_aux=True)
        *gradients, of_rows = vjp(g)
        outside = [jnp.where(is_in[:, None], 0, a) for a in (*rows, *of_rows)]
        return (value, *gradients), outside

    @jax.jit
    def plain(index, *args):
        def run(x, up, down, bias, weights):
            weights = jnp.where(index < num_groups, weights, 0)
            entry = jnp.minimum(index, num_groups - 1)
            rows = jnp.einsum("td,tkdm->tkm", x, up[entry])
            y = jnp.einsum("tkm,tkmd->tkd", rows, down[entry])
            return jnp.einsum("tkd,tk->td", 2 * y + bias[entry] + x[:, None], weights)

        value, vjp = jax.vjp(run, *(a.astype(jnp.float32) for a in args))
        return value, *vjp(g.astype(jnp.float32))

    index = np.random.default_rng(0).integers(0, num_groups, (tokens, k))
    one = np.where(np.arange(tokens * k).reshape(index.shape) == 17, num_groups, index)
    some = np.where(index < 2, index, num_groups)
    every = index, one, some, np.full_like(index, num_groups)
    every = every if platform != "cuda" and dtype == jnp.float32 else (some,)  # it takes its time
    for choices in every:
        args = jnp.asarray(choices), x, up, down, bias, weights
        got, outside = ours(*args)
        assert [a.dtype for a in got] == [dtype] * 5 + [jnp.float32]
        for a, b in zip(got, plain(*args), strict=True):
            scale = np.abs(b).max(initial=1.0)
            # In bfloat16, each of up to four products in a row is rounded.
            near = tolerance(dtype, 64 if dtype == jnp.float32 else 4)["atol"]
            np.testing.assert_allclose(wide(a) / scale, b / scale, rtol=0, atol=near)
        assert not any(np.any(a) for a in outside)  # NaN is something


def test_choices_are_ordered_by_group_then_token():
    groups = group_choices(jnp.array([[2, 0], [0, 3], [2, 2]]), 5)
    assert groups.sizes.tolist() == [2, 0, 3, 1, 0]
    assert groups.order.tolist() == [1, 2, 0, 4, 5, 3]
    assert groups.place.tolist() == [2, 0, 1, 5, 3, 4]
    # With so many choices and groups, both do not fit one number.
    index = np.random.default_rng(0).integers(0, 1 << 16, (1 << 15, 1))
    many = group_choices(jnp.asarray(index), 1 << 16)
    expected = np.argsort(index[:, 0], kind="stable")
    assert (many.order == expected).all() and (many.place[expected] == np.arange(1 << 15)).all()


def test_a_bank_in_bfloat16_has_a_gradient_summed_in_float32():
    # In bfloat16, 256 + 1 + 1 is 256: each term is the sum of one block of rows.
    rows = jnp.zeros((192, 1), jnp.bfloat16).at[:64].set(4).at[jnp.array([64, 128])].set(1)
    of_bank = jax.grad(lambda bank: grouped_matmul(rows, bank, jnp.array([192])).sum())
    assert of_bank(jnp.ones((1, 1, 1), jnp.bfloat16)).item() == 258


def test_nothing_gives_nothing():
    bank, none = normal(3, 4, 2), jnp.zeros(0, jnp.int32)
    groups = Groups(jnp.zeros(3, jnp.int32), none, none)
    loss = lambda rows, bank: grouped_matmul(rows, bank, groups.sizes).sum()
    rows, towards_bank = jax.grad(loss, (0, 1))(jnp.zeros((0, 4)), bank)
    assert rows.shape == (0, 4) and not towards_bank.any()
    assert combine_matmul(jnp.zeros((0, 4)), bank, groups, jnp.zeros((0, 2))).shape == (0, 2)
    rows, back = Rows(rows), Rows(jnp.zeros((0, 2)))
    for platform in ("cpu", "tpu", "cuda"):
        name, y, _ = MATMUL.choose((rows, bank, groups.sizes), {}, "auto", platform)
        assert name == "reference" and y.shape == (0, 2)
        name, y, _ = OUTER.choose((rows, back, groups.sizes), {}, "auto", platform)
        assert name == "reference" and y.shape == (3, 4, 2) and not y.any()


def test_errors_say_both_numbers():
    rows, bank, sizes = normal(6, 4), normal(3, 4, 2), jnp.array([2, 2, 2])
    groups = group_choices(jnp.array([[0, 1], [2, 0], [1, 2]]), 3)
    with refused(ValueError, "4 wide", "bank", 2):
        grouped_matmul(rows, bank.swapaxes(1, 2), sizes)
    with refused(ValueError, "2 groups", "3 bank"):
        grouped_matmul(rows, bank, sizes[:2])
    with refused(ValueError, "6 choices", "4 tokens"):
        dispatch_matmul(rows[:4], bank, groups)
    with refused(ValueError, "5 rows", "4 weights", "6 choices"):
        combine(rows[:5], groups, normal(2, 2))


def test_flops_are_of_the_rows_that_multiply():
    shape = jax.ShapeDtypeStruct
    x, bank, take = shape((8, 5), "f4"), shape((3, 5, 7), "f4"), shape((24,), "i4")
    sizes, right = shape((3,), "i4"), shape((24, 7), "f4")
    taken = Rows(x, take)
    assert MATMUL.flops(Rows(x), bank, sizes) == 2 * 8 * 5 * 7
    assert MATMUL.flops(taken, bank, sizes) == OUTER.flops(taken, Rows(right), sizes) == 2 * 24 * 35
