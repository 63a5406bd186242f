"""The grouped ops with their gradients.
Functions that multiply take the backend first. The gradient of gathering tokens would be a scatter;
since the places of a token's choices are known, it is a gather and a sum over `k`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .. import hopper
from ..dispatch import Implementation, Op
from . import gpu, megablox, reference, tpu


def _matmul_flops(rows, bank, group_sizes, take=None, *, contracted=1):
    count = rows.shape[0] if take is None else take.shape[0]
    return 2 * count * bank.shape[1] * bank.shape[2]


def _outer_flops(left, right, group_sizes, take_left=None, take_right=None):
    count = left.shape[0] if take_left is None else take_left.shape[0]
    return 2 * count * left.shape[1] * right.shape[1]


MATMUL = Op(
    "grouped_matmul",
    reference.matmul,
    (
        Implementation("pallas_tpu", "tpu", tpu.matmul, tpu.matmul_config),
        Implementation("megablox", "tpu", megablox.matmul, megablox.sizes),
        Implementation("mosaic_gpu", "cuda", gpu.matmul, gpu.matmul_config, hopper.DEVICES),
    ),
    _matmul_flops,
)
OUTER = Op(
    "grouped_outer",
    reference.outer,
    (
        Implementation("pallas_tpu", "tpu", tpu.outer, tpu.outer_config),
        Implementation("megablox", "tpu", megablox.outer, megablox.sizes),
        Implementation("mosaic_gpu", "cuda", gpu.outer, gpu.outer_config, hopper.DEVICES),
    ),
    _outer_flops,
)


class Groups(NamedTuple):
    """The choices of all tokens, sorted by group; choice `i` is one of token `i // k`.

    If the sizes sum to less than N, the last choices of the order belong to no group.
    """

    sizes: Int[Array, "E"]  # choices of each group
    order: Int[Array, "N"]  # the choice at each place of the order
    place: Int[Array, "N"]  # of each choice in the order


def _token(groups: Groups, num_tokens: int) -> Int[Array, "N"]:
    """Returns the token of each choice, sorted by group."""
    return groups.order // max(1, groups.order.shape[0] // max(1, num_tokens))


def _each(a: Array, at: Array, is_in: Array) -> Array:
    """Returns the entries of `a` at some places, and zeros at masked ones."""
    at = jnp.where(is_in, at, a.shape[0])
    return jnp.take(a, at, axis=0, mode="fill", fill_value=0)


def _are_in(groups: Groups) -> Bool[Array, "N"]:
    """Returns whether each choice, sorted by group, belongs to a group."""
    return jnp.arange(groups.order.shape[0]) < groups.sizes.sum()


def _of_tokens(a: Array, groups: Groups, num_tokens: int) -> Array:
    """Returns the entry of each choice's token, sorted by group."""
    return _each(a, _token(groups, num_tokens), _are_in(groups))


def _scales(groups: Groups, weights: Array) -> Array:
    """Returns the weight of each choice, sorted by group."""
    return _each(weights.reshape(-1), groups.order, _are_in(groups))[:, None]


def _sum(rows: Array, groups: Groups, weights: Array) -> Array:
    slots = jnp.where(groups.place < groups.sizes.sum(), groups.place, rows.shape[0])
    return reference.combine(rows, slots.reshape(weights.shape), weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped(backend: str, rows: Array, bank: Array, sizes: Array) -> Array:
    """Returns `grouped_matmul`."""
    return MATMUL(rows, bank, sizes, backend=backend)


def _grouped_backward(backend: str, saved: Any, gradient: Array):
    rows, bank, sizes = saved
    towards_rows = MATMUL(gradient, bank, sizes, contracted=2, backend=backend)
    towards_bank = OUTER(rows, gradient, sizes, backend=backend)
    return towards_rows, towards_bank.astype(bank.dtype), None


grouped.defvjp(lambda backend, *args: (grouped(backend, *args), args), _grouped_backward)


@jax.custom_vjp
def spread(x: Array, groups: Groups) -> Array:
    """Returns `dispatch`."""
    return _of_tokens(x, groups, x.shape[0])


def _spread_backward(saved: Any, gradient: Array):
    x, groups = saved
    num_tokens = x.shape[0]
    ones = jnp.ones((num_tokens, gradient.shape[0] // max(1, num_tokens)), jnp.float32)
    return _sum(gradient, groups, ones), None


# The gradient needs only the number of tokens.
spread.defvjp(lambda x, groups: (spread(x, groups), (x[:, :0], groups)), _spread_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatched(backend: str, x: Array, bank: Array, groups: Groups) -> Array:
    """Returns `dispatch_matmul`."""
    return MATMUL(x, bank, groups.sizes, _token(groups, x.shape[0]), backend=backend)


def _dispatched_backward(backend: str, saved: Any, gradient: Array):
    x, bank, groups = saved
    each = MATMUL(gradient, bank, groups.sizes, contracted=2, backend=backend)
    token = _token(groups, x.shape[0])
    towards_bank = OUTER(x, gradient, groups.sizes, token, backend=backend)
    towards_x = _spread_backward((x, groups), each)[0]
    return towards_x, towards_bank.astype(bank.dtype), None


dispatched.defvjp(lambda backend, *args: (dispatched(backend, *args), args), _dispatched_backward)


@jax.custom_vjp
def combined(rows: Array, groups: Groups, weights: Array) -> Array:
    """Returns `combine`."""
    return _sum(rows, groups, weights)


def _combined_backward(saved: Any, gradient: Array):
    rows, groups, weights = saved
    each = _of_tokens(gradient, groups, weights.shape[0]).astype(jnp.float32)
    towards_rows = (_scales(groups, weights) * each).astype(rows.dtype)
    towards_weights = _of_weights(rows, each, groups, weights)
    return towards_rows, None, towards_weights


combined.defvjp(lambda *args: (combined(*args), args), _combined_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul_combined(
    backend: str, rows: Array, bank: Array, groups: Groups, weights: Array
) -> Array:
    """Returns `combine_matmul`."""
    return _sum(MATMUL(rows, bank, groups.sizes, backend=backend), groups, weights)


def _matmul_combined_backward(backend: str, saved: Any, gradient: Array):
    rows, bank, groups, weights = saved
    token, scale = _token(groups, weights.shape[0]), _scales(groups, weights)
    each = MATMUL(gradient, bank, groups.sizes, token, contracted=2, backend=backend)
    weighted = (rows.astype(jnp.float32) * scale).astype(rows.dtype)
    towards_bank = OUTER(weighted, gradient, groups.sizes, None, token, backend=backend)
    towards_weights = _of_weights(rows, each, groups, weights)
    towards_rows = (each.astype(jnp.float32) * scale).astype(rows.dtype)
    return towards_rows, towards_bank.astype(bank.dtype), None, towards_weights


matmul_combined.defvjp(
    lambda backend, *args: (matmul_combined(backend, *args), args), _matmul_combined_backward
)


def _of_weights(rows: Array, gradient: Array, groups: Groups, weights: Array) -> Array:
    """Returns the gradient of the weights: the dot product of each row with its cotangent."""
    each = (rows.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(1)
    each = _each(each, groups.place, groups.place < groups.sizes.sum())
    return each.reshape(weights.shape).astype(weights.dtype)
