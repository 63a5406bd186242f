"""Documents packed into one row have the logits that they have alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.sight import CUT, assert_documents_do_not_meet
from tests.helpers.tiny import (
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    error,
    forward,
    is_equal,
    text,
    tiny,
)


@pytest.mark.parametrize(
    ("depth", "pattern", "kv"),
    [
        ("fixed", "middle_cycle", "own"),
        ("fixed", "sequence", "first_recursion"),
        ("expert_choice", "middle_cycle", "own"),
        ("expert_choice", "cycle", "first_recursion"),
    ],
)
def test_packed_documents_do_not_see_each_other(depth, pattern, kv):
    config = tiny(depth, pattern, kv=kv)
    packed = assert_documents_do_not_meet(config, "causal", n=64)
    one_document = forward(draw(config), text(), config, "causal")[0]
    assert_close(one_document[:, :CUT], packed[:, :CUT])
    assert error(one_document[:, CUT:], packed[:, CUT:]) > 1e-2


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_kept_tokens_do_not_see_another_documents_kept_tokens(mode, kv):
    config = tiny("expert_choice", kv=kv, capacity=(1.0, 0.75, 0.5))
    # Routers that score all alike keep the earliest tokens, whatever they are: 12, 9, 6 of them.
    params = draw(config)
    params = {**params, "depth": {"router": {"out": jnp.zeros((3, 16))}}}
    segments = jnp.array([[1] * 4 + [2] * 8] * 2)
    positions = jnp.array([[*range(4), *range(8)]] * 2)
    tokens = text()
    other = tokens.at[:, :4].set((tokens[:, :4] + 1) % VOCAB)
    (a, aux), (b, _) = (
        forward(params, ids, config, mode, positions, segments) for ids in (tokens, other)
    )
    assert np.array_equal(aux.depth_used, [[3] * 6 + [2] * 3 + [1] * 3] * 2)
    assert is_equal(a[:, 4:], b[:, 4:])
    assert not is_equal(a[:, :4], b[:, :4])


@pytest.mark.parametrize("depth", ["fixed", "expert_choice"])
def test_no_segments_and_positions_are_one_document_from_zero(depth):
    config = tiny(depth)
    params = draw(config)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    given = forward(params, text(), config, "eval", positions, jnp.full((2, LENGTH), 5))[0]
    assert is_equal(forward(params, text(), config)[0], given)


def test_logits_depend_on_distances_between_positions_only():
    config = tiny()
    params = draw(config)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    here, there, wide = (
        forward(params, text(), config, "eval", p)[0]
        for p in (positions, positions + 9, positions * 2)
    )
    assert_close(here, there, n=4096)  # angles to 20 radians are rounded before the cosine
    assert error(here, wide) > 1e-2
