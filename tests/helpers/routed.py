"""Expert choice against the computation by hand."""

import numpy as np

from tests.helpers import by_hand
from tests.helpers.tiny import assert_close, draw, forward, text


def assert_is_by_hand(config, mode="eval"):
    """Asserts that logits, kept tokens and router losses are those computed by hand."""
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config, mode)
    by_logits, reports = by_hand.forward(params, tokens, config, mode)
    assert_close(logits, by_logits)
    depth = np.zeros(tokens.shape, int)
    for r in range(config.depth.num_recursions):
        for row, report in zip(depth, reports, strict=True):
            row[report[r][2]] += 1
    assert np.array_equal(aux.depth_used, depth)
    entropies = [by_hand.cross_entropy(reports, r) for r in range(config.depth.num_recursions)]
    assert_close(aux.metrics["router_cross_entropy"], np.array(entropies))
    assert_close(aux.losses["router"], config.depth.aux_loss_weight * np.sum(entropies))
