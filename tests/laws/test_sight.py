"""What a token's logits may depend on: no later token, and no other document.

By perturbation, for a gradient cannot see a choice among all tokens of a row.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import exhaustive, points
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

CUTS = (0, 4, LENGTH - 2)
FIRST = 7  # tokens of the first of two documents
TOGETHER, POINTS = points.combined(), points.every()
WAYS = [(name, "causal") for name in TOGETHER]
WAYS += [exhaustive((name, "causal")) for name in POINTS]
WAYS += [
    (name, mode) if name in points.DEPTHS else exhaustive((name, mode))  # which read the mode
    for mode in ("train", "eval")
    for name in POINTS
]


def row(*lengths):
    """Returns positions and segments [2 T] of rows of documents, and of padding behind them."""
    place, segment = np.zeros(LENGTH, int), np.zeros(LENGTH, int)
    for i, length in enumerate(lengths):
        start = sum(lengths[:i])
        place[start : start + length], segment[start : start + length] = np.arange(length), i + 1
    return jnp.array([place] * 2), jnp.array([segment] * 2)


def is_free_of_the_future(run, seed):
    """Returns whether no logit up to a cut changed with the tokens after it."""
    tokens = text(seed)
    logits, aux = run(tokens, *row(LENGTH))
    for cut in CUTS:
        later = (text(seed + 100)[:, cut + 1 :] + 1) % VOCAB
        other, other_aux = run(jnp.concatenate([tokens[:, : cut + 1], later], 1), *row(LENGTH))
        depths = aux.depth_used[:, : cut + 1], other_aux.depth_used[:, : cut + 1]
        if not is_equal((logits[:, : cut + 1], depths[0]), (other[:, : cut + 1], depths[1])):
            return False
        assert not is_equal(logits[:, cut + 1 :], other[:, cut + 1 :])
    return True


def assert_documents_do_not_meet(run):
    """Asserts that packed documents have the logits and depths that each has before padding."""
    tokens, rest = text(), LENGTH - FIRST
    packed, aux = run(tokens, *row(FIRST, rest))
    first, first_aux = run(tokens, *row(FIRST))
    second, second_aux = run(jnp.roll(tokens, -FIRST, 1), *row(rest))
    join = lambda a, b: np.concatenate([a[:, :FIRST], b[:, :rest]], axis=1)
    assert_close(packed, join(first, second), n=256)
    assert np.array_equal(aux.depth_used, join(first_aux.depth_used, second_aux.depth_used))
    assert error(run(tokens, *row(LENGTH))[0][:, FIRST:], packed[:, FIRST:]) > 1e-3


@pytest.mark.few(10)
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_token_sees_no_later_one_and_no_other_document_or_the_model_says_so(way):
    name, mode = way
    config = {**POINTS, **TOGETHER}[name]
    run = functools.partial(forward, draw(config), config=config, mode=mode, step=jnp.int32(0))
    call = lambda tokens, place, segment: run(tokens, positions=place, segment_ids=segment)
    assert config.is_causal(mode) or mode != "causal"
    logits = call(text(), *row(LENGTH))[0]
    assert_close(call(text()[::-1], *row(LENGTH))[0][::-1], logits, n=256)  # nor another row
    if config.is_causal(mode):
        assert is_free_of_the_future(call, 0)
        assert_documents_do_not_meet(call)
    else:
        assert not all(is_free_of_the_future(call, seed) for seed in range(10))


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
