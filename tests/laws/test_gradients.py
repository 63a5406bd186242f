"""Every weight has a finite gradient, whatever the backward pass computes again."""

import jax
import numpy as np
import pytest

from recursia.sharing.remat import Remat
from tests.helpers import points, slow
from tests.helpers.tiny import assert_close, draw, gradient, text

POINTS = points.every()
QUICK = (*points.MIXERS, *points.FEEDFORWARDS, *points.DEPTHS)
NAMES = [name if name in QUICK else slow(name) for name in POINTS]


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
    assert_close(gradient(weights, text(), config, remat=Remat(unit)), kept, n=1024)
