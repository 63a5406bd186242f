"""Attention by where tokens stand equals its definition, and its kernels equal the reference."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels import tuned
from recursia.kernels.routed_attention import (
    BACKWARD,
    FORWARD,
    attention_plan,
    reference,
    routed_attention,
)
from recursia.kernels.routed_attention.plan import (
    BITS,
    EVERY,
    LIVE,
    listed,
    meeting,
    padded,
    ranges,
)
from recursia.kernels.routed_attention.sizes import OfTpu, sized_by
from recursia.kernels.routed_attention.where import Inputs, Scoring, Where, visible
from tests.helpers.kernels import NEEDS_INTERPRETER, backend, normal, tolerance

SIZES = {  # B T S N K H W
    "plain": (2, 9, 9, 4, 2, 8, 8),
    "subset": (2, 5, 12, 3, 1, 4, 4),
    "one": (1, 1, 1, 1, 1, 2, 2),
    "more queries": (1, 7, 3, 2, 2, 6, 6),
    "wide values": (2, 5, 12, 3, 1, 4, 8),
}


def arrays(batch, length, key_length, heads, groups, width, wide=None, *, dtype=jnp.float32):
    make = functools.partial(normal, dtype=dtype)
    key, value = ((batch, key_length, groups, size) for size in (width, wide or width))
    return [make(batch, length, heads, width), make(*key, seed=1), make(*value, seed=2)]


def stand(kind, batch, length, key_length):
    """Returns positions and segments by name: where tokens of a kind of training stand."""
    rng = np.random.default_rng(0)
    of = lambda *arrays: Where(*(None if x is None else jnp.asarray(x) for x in arrays))
    if kind == "counted":
        return Where()
    if kind == "documents":  # of which every token is there
        return of(None, None, np.sort(rng.integers(0, 3, (batch, length))))
    if kind == "sorted":
        both = max(length, key_length)
        subset = lambda n: np.sort([rng.permutation(both)[:n] for _ in range(batch)])
        return of(subset(length), subset(key_length))
    if kind == "packed":  # documents one after the other, some tokens hidden
        breaks = np.sort(rng.integers(0, key_length + 1, (batch, 3)))
        segments = (np.arange(key_length) >= breaks[..., None]).sum(1)
        starts = np.concatenate([np.zeros((batch, 1), int), breaks], 1)
        positions = np.arange(key_length) - np.take_along_axis(starts, segments, 1)
        segments = np.where(rng.random(segments.shape) < 0.2, -1, segments)
        index = np.sort(rng.integers(0, key_length, (batch, length)))
        take = lambda x: np.take_along_axis(x, index, 1)
        return of(take(positions), positions, take(segments), segments)
    assert kind == "anywhere"  # no order, and queries that see nothing
    draw = lambda n, most: rng.integers(0, most, (batch, n))
    return of(draw(length, 9) - 3, draw(key_length, 9), draw(length, 3), draw(key_length, 2))


PLACES = ("counted", "sorted", "packed", "anywhere")


def defined(query, key, value, relative=None, *, where, scale=0.3):
    """The definition, all queries at once; one that sees nothing reads zeros."""
    arrays = where.written_out(*query.shape[:2], key.shape[1]).arrays
    (here, mine), (there, its) = arrays[::2], arrays[1::2]
    here, mine, there, its = here[..., None], mine[..., None], there[:, None], its[:, None]
    each = query.shape[2] // key.shape[2]
    scores = scale * jnp.einsum("btnh,bsnh->bnts", query, key.repeat(each, 2))
    if relative is not None:
        behind = jnp.clip(here - there, 0, relative.shape[-1] - 1)[:, None]
        scores += jnp.take_along_axis(relative.swapaxes(1, 2), behind, -1)
    sees = ((there <= here) & (its == mine))[:, None]
    weights = jnp.where(sees, jnp.exp(scores), 0)
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bnts,bsnh->btnh", weights, value.repeat(each, 2))


@pytest.mark.parametrize(
    "size, kind, further",
    [
        *(("subset", kind, further) for kind in PLACES for further in (None, 5)),
        *(("plain", kind, None) for kind in PLACES),
        ("one", "counted", None),
        ("more queries", "anywhere", None),
        ("wide values", "packed", None),
    ],
)
def test_the_reference_and_its_gradients_are_the_definition(size, kind, further):
    size = SIZES[size]
    inputs, where = arrays(*size), stand(kind, *size[:3])
    if further is not None:
        inputs.append(normal(*inputs[0].shape[:3], further))

    @jax.jit
    def both(*inputs):
        def ours(query, key, value, relative=None):
            how = {"relative": relative, "scale": 0.3, **where._asdict()}
            return routed_attention(query, key, value, **how)

        made = [jax.vjp(f, *inputs) for f in (ours, functools.partial(defined, where=where))]
        return [(out, pull(normal(*out.shape, seed=9))) for out, pull in made]

    near = tolerance(jnp.float32, size[2] + size[5])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), *both(*inputs))


@pytest.mark.parametrize("size", [(0, 4, 4, 2, 1, 4), (2, 0, 4, 2, 1, 4), (2, 3, 0, 2, 1, 4)])
def test_no_tokens_are_no_error(size):
    inputs = arrays(*size)
    out, grads = jax.value_and_grad(lambda x: routed_attention(*x).sum())(inputs)
    assert out == 0
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": (2, 9, 2, 6)}, r"width 8 but key has 2 and 6"),
        ({"key": (3, 9, 2, 8)}, r"batch 2 and width 8 but key has 3"),
        ({"key": (2, 9, 3, 8)}, r"4 query heads do not divide among 3"),
        ({"value": (2, 8, 2, 8)}, r"key is .* but value is"),
        ({"query_positions": (2, 8)}, r"query_positions is \(2, 8\); must be \(2, 9\)"),
        ({"relative": (2, 9, 2, 3)}, r"relative is"),
        (
            {"key": (2, 8, 2, 8), "query_segments": (2, 9)},
            r"9 queries have segments and 8 keys have none",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = {"query": (2, 9, 4, 8), "key": (2, 9, 2, 8), "value": (2, 9, 2, 8)} | change
    if "key" in change:
        shapes["value"] = change["key"]
    given = {name: jnp.zeros(s, int if "_" in name else float) for name, s in shapes.items()}
    with pytest.raises(ValueError, match=message):
        routed_attention(**given)


def pulled(forward, backward, inputs, where, scoring):
    """Returns the output, the logarithms and the gradients for a fixed cotangent."""
    grad = normal(*inputs[0].shape, dtype=inputs[0].dtype, seed=9)

    def run(*inputs):
        given = Inputs(*inputs, where)
        made = forward(given, scoring=scoring)
        return *made, *backward(given, made, grad, scoring=scoring)[:3]

    return jax.jit(run)(*inputs)


@functools.cache
def referred(size, kind, dtype, window=0):
    """Returns inputs, where they stand, and all that the reference makes of them."""
    inputs, where = arrays(*size, dtype=dtype), stand(kind, *size[:3])
    scoring = Scoring(0.3, window)
    return inputs, where, pulled(reference.forward, reference.backward, inputs, where, scoring)


def assert_near(results, expected, dtype, terms):
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype
        near = tolerance(wanted.dtype if wanted.dtype == dtype else jnp.float32, terms)
        result, wanted = (jnp.where(jnp.isposinf(x), 1e9, x) for x in (result, wanted))
        np.testing.assert_allclose(*(x.astype(jnp.float32) for x in (result, wanted)), **near)


def test_half_precision_stays_near_single():
    size = SIZES["plain"][:6]
    *_, single = referred(size, "packed", jnp.float32)
    *_, half = referred(size, "packed", jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for x in (half[0], *half[2:]))
    for one, other in zip(single, half, strict=True):
        near = tolerance(jnp.bfloat16, 9)
        np.testing.assert_allclose(other.astype(jnp.float32), one, **near)


RAGGED = (1, 141, 150, 2, 1, 8)  # two blocks of 128 each way
OWN = (2, 141, 141, 2, 1, 8)  # no multiple of splash attention's blocks
CASES = [
    # Has blocks of which every token sees each.
    ("pallas_tpu", (1, 256, 150, 2, 1, 8), "counted", jnp.float32, 0),
    ("pallas_tpu", RAGGED, "packed", jnp.bfloat16, 0),
    ("pallas_tpu", RAGGED, "anywhere", jnp.float32, 0),
    ("pallas_tpu", (1, 1, 1, 1, 1, 2), "counted", jnp.float32, 0),
    *(("splash", OWN, kind, jnp.float32, w) for kind in ("counted", "documents") for w in (0, 5)),
    ("mosaic_gpu", (1, 141, 150, 2, 1, 64), "counted", jnp.bfloat16, 0),  # blocks of 128 and 64
    ("mosaic_gpu", (2, 37, 42, 4, 2, 12), "packed", jnp.bfloat16, 0),  # heads of 12 are padded
    ("mosaic_gpu", (1, 141, 150, 2, 2, 64), "anywhere", jnp.bfloat16, 0),
    ("mosaic_gpu", (1, 9, 9, 1, 1, 192), "counted", jnp.bfloat16, 0),
]
NEEDED = {"mosaic_gpu": NEEDS_INTERPRETER}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=NEEDED.get(case[0], ()), id="-".join(case[::2][:2]))
        for case in CASES
    ],
)
def test_kernels_are_the_reference(case, monkeypatch, tmp_path, capfd):
    kernel, size, kind, dtype, window = case
    inputs, where, expected = referred(size, kind, dtype, window)
    config = OfTpu(128, 128) if kernel == "pallas_tpu" else None
    if kind == "packed":  # by a plan, whose sizes are in the table that calls read
        monkeypatch.setattr(tuned, "FOLDER", tmp_path)
        shapes = tuned.shapes(sized_by(Inputs(*inputs[:3], where)))
        entry = {shapes: {"config": {"queries": 128, "keys": 128}}}
        tuned.path("cpu").write_text(json.dumps({FORWARD.name: {"pallas_tpu": entry}}))
        where = where._replace(plan=attention_plan(*inputs[:2], where))
        assert where.plan["tpu"].blocks == OfTpu(128, 128).blocks(*size[1:3], False)
    both = (backend(op, kernel, config) for op in (FORWARD, BACKWARD))
    results = pulled(*both, inputs, where, Scoring(0.3, window))
    assert_near(results, expected, dtype, size[2] + size[5])
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", PLACES)
def test_blocks_that_are_left_out_see_nothing(kind):
    where = stand(kind, 2, 37, 42)
    where = padded(where.written_out(2, 37, 42), 8, 4)
    sees = np.asarray(visible(where)).reshape(2, 5, 8, 11, 4)
    some, every = meeting(where, 8, 4)
    assert not (sees.any((2, 4)) & ~np.asarray(some)).any()
    assert not (np.asarray(every) & ~sees.all((2, 4))).any()


@pytest.mark.parametrize("kind", ["counted", "sorted", "packed"])
def test_where_tokens_are_in_order_the_blocks_visited_follow_what_is_seen(kind):
    where = stand(kind, 1, 160, 160)
    if where.key_segments is not None:  # hidden tokens, of segment -1, may be anywhere
        where = where._replace(
            query_segments=jnp.maximum.accumulate(where.query_segments, axis=1),
            key_segments=jnp.maximum.accumulate(where.key_segments, axis=1),
        )
    where = padded(where.written_out(1, 160, 160), 8, 8)
    some, every = (np.asarray(x) for x in meeting(where, 8, 8))
    sees = np.asarray(visible(where)).reshape(1, 20, 8, 20, 8).any((2, 4))
    assert some.sum() <= sees.sum() + 20
    first, start, stop, end = np.moveaxis(np.asarray(ranges(some, every)), -1, 0)
    assert (end - first).sum() <= some.sum() + 20
    assert (stop - start).sum() >= every.sum() - 20


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_that_meets_is_visited_once(seed):
    rng = np.random.default_rng(seed)
    some = rng.random((3, 5, 7)) < 0.4
    some[1, 2] = False
    every = some & (rng.random(some.shape) < 0.5)
    codes, bounds = map(np.asarray, listed(jnp.asarray(some), jnp.asarray(every)))
    begin, half, end = bounds
    codes = codes[:end]
    live, full = (codes & LIVE) != 0, (codes & EVERY) != 0
    passed = np.bincount(codes[live] >> BITS, minlength=some.size).reshape(some.shape)
    np.testing.assert_array_equal(passed, some)
    np.testing.assert_array_equal(full, every.reshape(-1)[codes >> BITS])
    outer = (codes >> BITS) // 7
    assert (np.diff(outer) >= 0).all() and set(outer) == set(range(15))
    assert begin == 0 and abs(2 * half - end) <= 7
    assert outer[half] != outer[half - 1]  # the halves share no outer block
    first, start, stop, end = np.moveaxis(np.asarray(ranges(some, every)), -1, 0)
    for b, o in np.ndindex(3, 5):
        assert some[b, o].sum() == some[b, o, first[b, o] : end[b, o]].sum()
        assert every[b, o, start[b, o] : stop[b, o]].all()
        assert first[b, o] <= start[b, o] <= stop[b, o] <= end[b, o]
