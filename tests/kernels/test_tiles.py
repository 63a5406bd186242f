"""Attention by tiles of the mask is attention by all keys; what is skipped is counted exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, kv
from recursia.kernels.routed_attention import routed_attention, tiles
from recursia.kernels.routed_attention.where import Where, visible
from recursia.sharing.remat import Remat
from tests.helpers import points
from tests.helpers.flops import BATCH, traced
from tests.helpers.kernels import normal


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "SIDE", 4)
    monkeypatch.setattr(tiles, "MOST", 3)


@pytest.mark.parametrize("length", [3, 4, 9, 12, 30])
@pytest.mark.parametrize("window", [0, 1, 4, 7])
def test_tiles_hold_every_pair_that_is_seen_and_no_pair_twice(small_tiles, length, window):
    where = Where().written_out(1, length, length)
    seen = np.asarray(visible(where, window))[0]
    held = {}
    for name, found in (
        ("queries", tiles.by_queries(Where(), length, length, window)),
        ("keys", tiles.by_keys(Where(), length, length, window)),
    ):
        held[name] = np.zeros((length, length), int)
        for outer, inner in found:
            held[name][(outer, inner) if name == "queries" else (inner, outer)] += 1
    assert (held["queries"] == held["keys"]).all()
    assert held["queries"].max() == 1
    assert (held["queries"] >= seen).all()
    assert held["queries"].sum() == tiles.pairs(length, length, window)


def test_the_number_of_tiles_is_bounded_whatever_the_length(small_tiles):
    assert len(tiles.by_queries(Where(), 12000, 12000, 0)) == 3
    assert tiles.pairs(12000, 12000) == 2 / 3 * 12000**2  # 6 tiles of 9


def test_what_is_not_by_place_is_one_tile(small_tiles):
    positions = jnp.zeros((1, 9), jnp.int32)
    for where, keys in ((Where(positions), 9), (Where(None, positions), 9), (Where(), 12)):
        assert tiles.pairs(9, keys, 0, where) == 9 * keys


@pytest.mark.few(2)
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("has_relative", [False, True])
def test_tiles_change_no_result(small_tiles, window, cap, is_packed, has_relative):
    shapes = (2, 10, 4, 6), (2, 10, 2, 6), (2, 10, 2, 6), (2, 10, 4, 3)
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes[: 3 + has_relative])]
    segments = jnp.array([[1] * 6 + [2] * 4, [1] * 10]) if is_packed else None

    def run(positions):
        def attend(query, key, value, relative=None):
            out = routed_attention(
                query, key, value, query_positions=positions, key_positions=positions,
                query_segments=segments, relative=relative, window=window, cap=cap,
            )  # fmt: skip
            return jnp.sin(out).sum()

        # Compiled anew: an op that is called by itself may have been compiled with other tiles.
        return jax.jit(jax.value_and_grad(attend, tuple(range(len(inputs)))))(*inputs)

    whole = run(jnp.broadcast_to(jnp.arange(10), (2, 10)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(None), whole)


WINDOW = kv.Plan(window=5)
ROUTED = points.point(depth_="expert_choice")
POINTS = {
    "fixed": points.point(depth_="fixed"),
    "routed": ROUTED,
    "routed, first keys": points.point(depth_="expert_choice", kv_sharing="first_recursion"),
    "relative": points.point(mixer="momha", depth_="expert_choice"),
    "window": dataclasses.replace(points.point(), kv=WINDOW),
    "window, routed": dataclasses.replace(ROUTED, kv=WINDOW),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("remat", [("none",), ("block", "attention")], ids="-".join)
def test_executed_flops_leave_out_what_is_skipped(small_tiles, name, remat):
    config, length = POINTS[name], 13
    both = traced(jax.value_and_grad, config, length, Remat(*remat))
    assert BATCH * accounting.executed_training_flops(config, length, Remat(*remat)) == both
    assert traced(lambda f: f, config, length) < BATCH * accounting.forward_flops(config, length)
