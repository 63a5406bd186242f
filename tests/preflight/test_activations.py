"""Temporaries of hand-made programs, and of training steps against the compiler's report."""

import jax
import jax.numpy as jnp
import pytest

from recursia import activations

ROWS, WIDTH = 64, 32
SIZE = 4 * ROWS * WIDTH


def peak(f, *shapes, fuses=True):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return activations.peak_bytes(jax.make_jaxpr(f)(*arrays), "tpu" if fuses else "cuda")


def test_what_is_fused_has_no_buffer():
    assert peak(lambda x: jnp.tanh(x * 2 + 1), (ROWS, WIDTH)) == 0


def test_a_product_lives_until_its_last_reader():
    chain = lambda one, w: (jnp.sin(one) @ w + 1) @ w
    shapes = (ROWS, WIDTH), (WIDTH, WIDTH)
    assert peak(lambda x, w: chain(x @ w, w), *shapes) == 2 * SIZE
    assert peak(lambda x, w: (chain(one := x @ w, w), one.sum()), *shapes) == 3 * SIZE


def test_a_library_multiplies_what_lies_in_a_buffer():
    squared = lambda x, w: (x * x) @ w + 1
    shapes = (ROWS, WIDTH), (WIDTH, WIDTH)
    fused, read = (peak(squared, *shapes, fuses=fuses) for fuses in (True, False))
    assert read - fused == SIZE


def test_what_a_call_computes_is_in_a_buffer_no_more_than_elsewhere():
    called = lambda x, w: jax.jit(jnp.square)(x) @ w + 1
    plain = lambda x, w: jnp.square(x) @ w + 1
    shapes = (ROWS, WIDTH), (WIDTH, WIDTH)
    for fuses in (True, False):
        assert peak(called, *shapes, fuses=fuses) == peak(plain, *shapes, fuses=fuses)


def test_what_a_filled_buffer_reads_lives_until_then():
    def filled(x, w):
        one = x @ w
        return jnp.sin(one) @ w + 1

    shapes = (ROWS, WIDTH), (WIDTH, WIDTH)
    assert peak(filled, *shapes, fuses=False) == 3 * SIZE  # what is read, the sine, the product


def test_a_loop_keeps_one_carry_and_stacks_what_it_saves():
    def loop(x, w, steps):
        body = lambda x, _: ((y := jnp.tanh(x @ w)), y)
        return jax.lax.scan(body, x, None, length=steps)

    two, ten = (
        peak(lambda x, w, n=n: loop(x, w, n), (ROWS, WIDTH), (WIDTH, WIDTH)) for n in (2, 10)
    )
    assert ten - two == 8 * SIZE


@pytest.mark.parametrize("steps", [4, 16])
def test_rematerialisation_leaves_one_carry_a_step(steps):
    """Of two hidden products, none is kept; the rest does not depend on the steps."""

    def loss(x, w, wide, is_kept):
        body = lambda x, _: (x + jnp.tanh(jnp.tanh(x @ wide) @ wide.T) @ w, None)
        body = body if is_kept else jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, x, None, length=steps)[0].sum()

    shapes = (ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH)
    grad = lambda is_kept: jax.grad(lambda *a: loss(*a, is_kept), (0, 1, 2))
    kept, again = (peak(grad(is_kept), *shapes) for is_kept in (True, False))
    assert kept - again > (steps - 2) * 4 * SIZE
    assert steps * SIZE <= again <= (steps + 16) * SIZE
