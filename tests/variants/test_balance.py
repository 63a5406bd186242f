"""Losses that even out the use of experts: as they are written, over parts, and at their ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.layers import balance, experts
from tests.helpers.tiny import assert_close, error, normal


def usage_of(seed, batch=2, length=8, heads=(), num_experts=4):
    lead = (batch, length, *heads)
    logits = 2 * normal(*lead, num_experts, seed=seed)
    choice = experts.choose(logits, 2, score="softmax", is_renormalised=False)
    return logits, choice.index


def probabilities(logits):
    p = np.exp(np.asarray(logits, np.float64))
    return p / p.sum(-1, keepdims=True)


def minus_entropy(p):
    return (p * np.log(p)).sum(-1)


@pytest.mark.parametrize("heads", [(), (3,)])
def test_balance_losses_are_those_written_out(heads):
    logits, index = usage_of(0, heads=heads)
    use, p = balance.usage(logits, index), probabilities(logits)
    whole = p.mean((0, 1))
    assert_close(balance.sequence_loss(use), minus_entropy(p.mean(1)).mean())
    conditional, marginal = balance.information(use)
    assert_close(conditional, -minus_entropy(p).mean())
    assert_close(marginal, -minus_entropy(whole).mean())
    took = (np.asarray(index)[..., None] == np.arange(4)).mean((0, 1, -2))
    assert_close(balance.switch_loss(use), 4 * (took * whole).sum(-1).mean())
    z = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))
    assert_close(balance.z_loss(use), (z**2).mean())


@pytest.mark.parametrize("heads", [(), (3,)])
def test_sums_over_parts_add_up_to_the_whole(heads):
    logits, index = usage_of(0, heads=heads)
    add = lambda *uses: functools.reduce(functools.partial(jax.tree.map, jnp.add), uses)
    whole = balance.usage(logits, index)
    parts = [balance.usage(logits[:, at], index[:, at]) for at in (slice(0, 3), slice(3, None))]
    assert_close(add(*parts), whole)
    early = jax.random.bernoulli(jax.random.key(0), 0.5, logits.shape[:2])
    masked = [balance.usage(logits, index, mask) for mask in (early, ~early)]
    assert error(masked[0], whole) > 0.1
    assert_close(add(*masked), whole)


def test_tokens_that_do_not_count_get_no_gradient():
    logits, index = usage_of(0)
    is_counted = jnp.arange(8) < jnp.array([[5], [0]])

    def loss(logits):
        use = balance.usage(logits, index, is_counted)
        terms = balance.sequence_loss, balance.switch_loss, balance.z_loss
        return sum(term(use) for term in terms) + sum(balance.information(use))

    gradient = jax.grad(loss)(logits)
    assert not gradient[~is_counted].any() and gradient[is_counted].all()


def test_even_use_and_use_of_one_expert_are_the_ends():
    index = jnp.zeros((2, 8, 1), int)
    even = balance.usage(jnp.zeros((2, 8, 4)), index)
    one = balance.usage(jnp.zeros((2, 8, 4)).at[..., 0].set(1e3), index)
    only = balance.usage(normal(2, 8, 1), index)
    assert np.allclose(balance.sequence_loss(even), -np.log(4), rtol=1e-6)
    assert balance.sequence_loss(one) == balance.sequence_loss(only) == 0
    assert balance.switch_loss(even) == 1 and balance.switch_loss(one) == 4
    # Each token sure of one expert, all experts alike: the information is log E.
    sure = balance.usage(1e3 * jnp.eye(4)[None], jnp.arange(4)[None, :, None])
    assert np.allclose(balance.information(sure), (0, np.log(4)), rtol=1e-6)
    steep = lambda x: balance.sequence_loss(balance.usage(x, index))
    assert np.isfinite(jax.grad(steep)(jnp.zeros((2, 8, 4)).at[..., 0].set(1e3))).all()
