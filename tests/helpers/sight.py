"""What a token's logits may depend on: no later token, and no other document."""

import jax.numpy as jnp
import numpy as np

from tests.helpers.tiny import LENGTH, VOCAB, assert_close, draw, forward, is_equal, text

CUTS = (0, 4, LENGTH - 2)
CUT = 7
POSITIONS = jnp.array([[*range(CUT), *range(LENGTH - CUT)]] * 2)
SEGMENTS = jnp.array([[1] * CUT + [2] * (LENGTH - CUT)] * 2)


def is_free_of_the_future(config, mode, seeds=range(3), step=None):
    """Returns whether no logit up to a cut changed with the tokens after it."""
    run = lambda params, tokens: forward(params, tokens, config, mode, step=step)[0]
    for seed in seeds:
        params, tokens = draw(config, seed), text(seed)
        logits = run(params, tokens)
        for cut in CUTS:
            later = (text(seed + 100)[:, cut + 1 :] + 1) % VOCAB
            other = run(params, jnp.concatenate([tokens[:, : cut + 1], later], axis=1))
            if not is_equal(logits[:, : cut + 1], other[:, : cut + 1]):
                return False
            assert not is_equal(logits[:, cut + 1 :], other[:, cut + 1 :])
    return True


def assert_documents_do_not_meet(config, mode="eval", params=None, n=256):
    """Asserts that packed documents have the logits and depths that they have alone.

    Returns:
      The packed row's logits.
    """
    params, tokens = draw(config) if params is None else params, text()
    packed, aux = forward(params, tokens, config, mode, POSITIONS, SEGMENTS)
    alone = [forward(params, part, config, mode) for part in (tokens[:, :CUT], tokens[:, CUT:])]
    assert_close(packed, jnp.concatenate([logits for logits, _ in alone], axis=1), n)
    depths = np.concatenate([each.depth_used for _, each in alone], axis=1)
    assert np.array_equal(aux.depth_used, depths)
    return packed
