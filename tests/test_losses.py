"""Cross-entropy by chunks is cross-entropy."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from recursia.losses import cross_entropy, token_nats
from tests.helpers.tiny import counted, error, tol

B, T, D, V = 2, 12, 16, 40
CHUNKS = (1, 4, 5, 12, 100)  # 5 does not divide T, 100 is more


def problem(dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (B, T, D)).astype(dtype)
    head = {"matrix": 0.3 * jax.random.normal(keys[1], (V, D))}
    head["bias"] = jax.random.normal(keys[4], (V,))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.uniform(keys[3], (B, T)).at[0, 3].set(0.0)
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights):
    """The definition, on the logits of the whole batch."""
    matrix = head["matrix"].astype(hidden.dtype)
    logits = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
    logits += head.get("bias", 0.0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (weights * nats).sum()


def chunked(chunk):
    return lambda hidden, head, targets, weights: cross_entropy(
        hidden, head, targets, weights, chunk
    )[0]


@functools.cache
def reference(dtype):
    # In float32 from the same rounded inputs: what neither implementation may stray from.
    hidden, head, targets, weights = problem(dtype)
    head = {**head, "matrix": head["matrix"].astype(dtype).astype(jnp.float32)}
    grad = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 3)))
    return grad(hidden.astype(jnp.float32), head, targets, weights)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_are_those_of_the_whole_logits(chunk, dtype):
    inputs = problem(dtype)
    ours = jax.jit(jax.value_and_grad(chunked(chunk), argnums=(0, 1, 3)))(*inputs)
    loss, (hidden_grad, head_grad, weights_grad) = ours
    assert {x.dtype for x in (loss, weights_grad, *head_grad.values())} == {jnp.dtype("float32")}
    assert hidden_grad.dtype == dtype
    want, (hidden_want, head_want, weights_want) = reference(dtype)
    # The value and the weights' gradient are float32 sums whatever the inputs are.
    assert error(loss, want) < tol(jnp.float32, D)
    assert error(weights_grad, weights_want) < tol(jnp.float32, D)
    assert error(hidden_grad.astype(jnp.float32), hidden_want) < tol(dtype, V, c=1)
    assert error(head_grad, head_want) < tol(dtype, B * T, c=1)


def test_the_gradient_is_scaled_by_what_comes_after():
    inputs = problem(jnp.float32)
    once = jax.grad(chunked(5), argnums=(0, 1, 3))(*inputs)
    thrice = jax.grad(lambda *a: 3 * chunked(5)(*a), argnums=(0, 1, 3))(*inputs)
    assert error(thrice, jax.tree.map(lambda x: 3 * x, once)) < tol(jnp.float32, 1)


def test_each_token_has_its_own_loss():
    hidden, head, targets, weights = problem(jnp.float32)
    nats = token_nats(hidden, head, targets, 5)
    logits = jnp.einsum("btd,vd->btv", hidden, head["matrix"]) + head["bias"]
    want = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    assert nats.shape == (B, T)
    assert error(nats, want) < tol(jnp.float32, D)
    assert error((weights * nats).sum(), chunked(5)(hidden, head, targets, weights)) < tol(
        jnp.float32, B * T
    )


@pytest.mark.parametrize("chunk", [1, 4095])
def test_the_head_gradient_sums_in_float32_within_chunks_and_over_them(chunk):
    # 4095 equal terms: a sum in bfloat16 stops growing at a 256th of them, or ends rounded.
    rows = 4095
    hidden, head = jnp.ones((1, rows, 1), jnp.bfloat16), {"matrix": jnp.zeros((2, 1))}
    targets, weights = jnp.zeros((1, rows), jnp.int32), jnp.ones((1, rows))
    grad = jax.grad(chunked(chunk), argnums=1)(hidden, head, targets, weights)["matrix"]
    assert grad.tolist() == [[-rows / 2], [rows / 2]]


def whole_logits(loss, hidden, head, targets, weights):
    """Counts arrays of as many entries as the logits of the whole batch, in a traced gradient."""
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, targets, weights)
    is_whole = lambda equation: sum(out.aval.size >= B * T * V for out in equation.outvars)
    return counted(jaxpr.jaxpr, is_whole)


@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_logits_of_the_whole_batch_never_exist(chunk):
    inputs = problem(jnp.float32)
    assert whole_logits(plain, *inputs) > 0
    assert whole_logits(chunked(12), *inputs) > 0
    assert whole_logits(chunked(chunk), *inputs) == 0
