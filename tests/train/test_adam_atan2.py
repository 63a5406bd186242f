"""Adam-atan2: its step depends on no size of the gradient; what is cautious."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia.optimizers.adam_atan2 import AdamAtan2
from recursia.params import Spec, ones

STEADY = optax.constant_schedule(1.0)
GRADS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def moved(grads, start=0.0, **options):
    """Returns the updates of one parameter along some gradients."""
    adam = AdamAtan2(**{"learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": 0.0} | options)
    param = {"w": jnp.full(grads.shape[1:], start)}
    chain = adam.transform({"w": Spec(grads.shape[1:], ("embed", "mlp"), ones)}, STEADY)
    state, found = chain.init(param), []
    for grad in grads:
        updates, state = chain.update({"w": jnp.asarray(grad)}, state, param)
        found.append(updates["w"])
    return np.stack(found)


@pytest.mark.parametrize("size", [2.0**-40, 2.0**30])
def test_gradients_of_any_size_give_the_same_steps(size):
    assert np.array_equal(moved(GRADS), moved(GRADS * np.float32(size)))
    assert not np.any(moved(0 * GRADS))


def test_the_first_step_is_the_sign_of_the_gradient():
    assert np.allclose(moved(GRADS)[0], -1.27 * math.pi / 4 * np.sign(GRADS[0]), atol=1e-6)


def test_what_is_cautious_leaves_out_entries_against_the_gradient():
    plain, cautious = moved(GRADS)[1], moved(GRADS, cautious=0.0)[1]
    along = plain * GRADS[1] < 0
    assert not along.all() and np.array_equal(cautious != 0, along)
    assert np.allclose(cautious[along] * along.mean(), plain[along])


def test_only_entries_that_move_towards_zero_decay_where_decay_is_cautious():
    options = {"start": 1.0, "weight_decay": 0.5, "has_cautious_decay": True}
    change = moved(GRADS[:1], **options)[0] - moved(GRADS[:1])[0]
    assert np.allclose(change, np.where(GRADS[0] > 0, -0.5, 0.0), atol=1e-6)
