"""Tying is identity of parameters: a tied model is its untied copies, and sums their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.laws.copies import tied, untied
from recursia.params import at
from tests.helpers import slow
from tests.helpers import tiny as t
from tests.helpers.tiny import BLOCK, assert_close, draw, error, forward, gradient, text, tiny

ALL = lambda how: tuple((slot, how) for slot in BLOCK.slots)
VARIES = {
    "pattern": (),
    "by axes": (("attention", "recursion+block"), ("norms", "recursion"), ("mlp", "one")),
    "groups": (("attention", "block/2"), ("mlp", "recursion/2+block")),
    "table": (("mlp", ((0, 1), (1, 2), (2, 2), (3, 0))),),
    "one of each": ALL("one"),
    "all by recursion": ALL("recursion"),
    "only tables": ALL(((0, 1), (1, 2), (2, 2), (3, 0))),
}


TIED = {
    f"{pattern}, {name}": tiny(sharing_=pattern, recursions=4, varies=VARIES[name])
    for pattern, names in (
        ("cycle", VARIES),
        ("sequence", ("pattern", "groups", "table", "one of each")),
    )
    for name in names
}
FIRST_KEYS = {"kv": "first_recursion", "varies": (("mlp", ((0, 1), (1, 0))),)}
READING = {
    depth: tiny(depth, "middle_cycle", recursions=2, **FIRST_KEYS)
    for depth in ("fixed", "expert_choice")
}
CONFIGS = [*TIED.values(), READING["fixed"], slow(READING["expert_choice"])]


@pytest.mark.few(2)
@pytest.mark.parametrize("config", CONFIGS, ids=[*TIED, *READING])
def test_shared_gradient_is_the_sum_over_copies(config):
    params = draw(config)
    loss, grads = gradient(params, text(), config)
    free_config, free_params = untied(config, params)
    free_loss, free_grads = gradient(free_params, text(), free_config)
    assert_close(loss, free_loss)
    assert_close(grads, tied(config, free_config, free_grads), n=8 * 64)


@pytest.mark.parametrize("pattern", ["cycle", "sequence", "middle_cycle", "middle_sequence"])
def test_every_pattern_is_a_plain_stack_of_copies(pattern):
    config = tiny(sharing_=pattern)
    params = draw(config)
    free_config, free = untied(config, params)
    stack = at(free["core"], free_config.schedule.steps)
    vanilla = tiny(recursions=1, blocks=6)
    vanilla = dataclasses.replace(vanilla, num_layers=6 + sum(config.ends.values()), **config.ends)
    assert_close(
        forward(params, text(), config)[0], forward({**free, "core": stack}, text(), vanilla)[0]
    )


@pytest.mark.parametrize(
    ("axes", "table"),
    [
        ("block/2", ((0, 0),) * 4),
        ("recursion/2", ((0, 0), (0, 0), (1, 1), (1, 1))),
        ("recursion+block", ((0, 1), (2, 3), (4, 5), (6, 7))),
    ],
)
def test_axes_and_groups_are_their_table(axes, table):
    written, explicit = (tiny(recursions=4, varies=(("mlp", how),)) for how in (axes, table))
    assert written.schedule == explicit.schedule


def test_one_recursion_is_vanilla():
    none, cycle, sequence = (
        tiny(sharing_=pattern, recursions=1) for pattern in ("none", "cycle", "sequence")
    )
    params = draw(cycle)
    logits = forward(params, text(), cycle)[0]
    assert_close(forward(params, text(), none)[0], logits)
    assert_close(forward(params, text(), sequence)[0], logits)


def test_cycle_and_sequence_differ_unless_there_is_one_block():
    for blocks in (1, 2):
        cycle, sequence = (tiny(sharing_=s, blocks=blocks) for s in ("cycle", "sequence"))
        params = draw(cycle)
        difference = error(*(forward(params, text(), c)[0] for c in (cycle, sequence)))
        assert difference < t.tol(jnp.float32, 64) if blocks == 1 else difference > 1e-2


@pytest.mark.parametrize("slot", BLOCK.slots)
def test_every_entry_of_every_bank_is_used(slot):
    config = tiny(varies=((slot, ((0, 1), (1, 2), (3, 0))),))
    _, grads = gradient(draw(config), text(), config)
    for leaf in jax.tree.leaves(grads["core"][slot]):
        assert np.all(np.abs(leaf).reshape(len(leaf), -1).max(1) > 0)
