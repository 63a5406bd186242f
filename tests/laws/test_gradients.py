"""Every weight has a finite gradient, whatever the backward pass computes again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.sharing.remat import Remat
from tests.helpers import exhaustive, points, slow
from tests.helpers.tiny import draw, gradient, text, tol

POINTS = points.every()
# Points of several kinds at once are trained in tests/laws/test_any_point.py.
NAMES = [
    name if name in points.DEPTHS else (slow if name in points.WEIGHTS else exhaustive)(name)
    for name in POINTS
]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_has_a_gradient_that_rematerialisation_leaves_alone(name):
    config = POINTS[name]
    weights = draw(config)
    kept = gradient(weights, text(), config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept[1]):
        assert np.isfinite(leaf).all(), path
        is_of_policy = path[0].key == "depth"  # of which the training loss reaches some alone
        assert is_of_policy or np.any(leaf != 0), path
    unit = ("block", "recursion")[list(POINTS).index(name) % 2]
    again = gradient(weights, text(), config, remat=Remat(unit))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(kept))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        # Softmax ignores the bias of keys that are not rotated: its gradient is rounding alone.
        scale = max(float(np.abs(theirs).max()), 0.01 * largest)
        assert np.abs(ours - theirs).max() <= tol(jnp.float32, 1024) * scale
