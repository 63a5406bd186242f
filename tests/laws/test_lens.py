"""A recursion's state is read as the model reads its last: loop norm, coda, final norm, head."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from recursia import model
from recursia.depth.exit_gate import ExitGate
from tests.helpers.blocks import PUBLISHED
from tests.helpers.points import DEPTHS, RECURSIONS, point
from tests.helpers.tiny import assert_close, draw, error, text

POINTS = {
    **{name: point(name, sharing="middle_cycle", loop_norm="last") for name in ("llama", "huginn")},
    **{name: point(name) for name in PUBLISHED},
    **{name: point(depth_=name, sharing="middle_cycle") for name in DEPTHS if name != "exit_gate"},
    "exit_gate": dataclasses.replace(  # no token stops early
        point(depth_="exit_gate", loop_norm="each"), depth=ExitGate(RECURSIONS)
    ),
}


@jax.jit(static_argnames="config")
def lens(params, tokens, config, segment_ids):
    """Returns the last states, and those that the lens makes of each recursion's."""
    where = {"segment_ids": segment_ids}
    out = model.apply(params, tokens, config, mode="eval", **where)
    return out.hidden, [model.read(params, x, config, **where) for x in out.aux.states]


@pytest.mark.few(3)
@pytest.mark.parametrize("config", POINTS.values(), ids=POINTS)
def test_the_lens_of_the_last_recursion_is_the_model(config):
    segments = jnp.array([[1] * 5 + [2] * 7] * 2)  # a coda attends, so it must know them
    hidden, read = lens(draw(config), text(), config, segments)
    assert len(read) == config.schedule.num_recursions
    assert_close(hidden, read[-1])
    assert error(read[0], hidden) > 1e-3
