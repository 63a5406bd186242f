"""The grouped ops with their gradients.

The gradient of gathering tokens would be a scatter; since the places of a token's choices are
known, it is a gather and a sum over `k`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ..dispatch import Implementation, Op, on_hopper
from . import megablox, reference
from .reference import Rows


def _gpu() -> Any:
    from . import gpu

    return gpu


MATMUL = Op(
    "grouped_matmul",
    reference.matmul,
    (
        Implementation("megablox", "tpu", megablox.matmul, megablox.matmul_config),
        on_hopper(_gpu, "matmul"),
    ),
    lambda rows, bank, sizes, contracted=1: 2 * rows.shape[0] * bank.shape[1] * bank.shape[2],
)
OUTER = Op(
    "grouped_outer",
    reference.outer,
    (
        Implementation("megablox", "tpu", megablox.outer, megablox.outer_config),
        on_hopper(_gpu, "outer"),
    ),
    lambda left, right, sizes: 2 * left.shape[0] * left.shape[1] * right.shape[1],
)


class Groups(NamedTuple):
    """The choices of all tokens, sorted by group; choice `i` is one of token `i // k`.

    If the sizes sum to less than N, the last choices of the order belong to no group.
    """

    sizes: Int[Array, "E"]  # choices of each group
    order: Int[Array, "N"]  # the choice at each place of the order
    place: Int[Array, "N"]  # of each choice in the order

    def are_in(self) -> Bool[Array, "N"]:
        """Returns whether each choice, sorted by group, belongs to a group."""
        return jnp.arange(self.order.shape[0]) < self.sizes.sum()

    def tokens(self, x: Array) -> Int[Array, "N"]:
        """Returns the token of each choice, sorted by group, of tokens [T ...]."""
        return self.order // max(1, self.order.shape[0] // max(1, x.shape[0]))

    def rows(self, x: Array) -> Rows:
        """Returns tokens [T D] as the rows of their choices, sorted by group."""
        return Rows(x, self.tokens(x))

    def of_tokens(self, x: Array) -> Array:
        """Returns the entry of each choice's token, sorted by group; zero of no group."""
        return _each(x, self.tokens(x), self.are_in())

    def of_choices(self, weights: Array) -> Array:
        """Returns the weight of each choice as a column, sorted by group; zero of no group."""
        return _each(weights.reshape(-1), self.order, self.are_in())[:, None]

    def by_token(self, a: Array, weights: Array) -> Array:
        """Returns a number of each choice, sorted by group, as those of `weights`."""
        each = _each(a, self.place, self.place < self.sizes.sum())
        return each.reshape(weights.shape).astype(weights.dtype)

    def sum(self, rows: Array, weights: Array) -> Array:
        """Returns each token's weighted sum of its rows in groups."""
        slots = jnp.where(self.place < self.sizes.sum(), self.place, rows.shape[0])
        return reference.combine(rows, slots.reshape(weights.shape), weights)


def _each(a: Array, at: Array, is_in: Array) -> Array:
    """Returns the entries of `a` at some places, and zeros at masked ones."""
    at = jnp.where(is_in, at, a.shape[0])
    return jnp.take(a, at, axis=0, mode="fill", fill_value=0)


def _dot(a: Array, b: Array) -> Array:
    """Returns the dot product of each row with that of another array, in float32."""
    return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul(backend: str, x: Array, bank: Array, sizes: Array, groups: Groups | None) -> Array:
    """Returns `grouped_matmul` of rows, or with `groups` `dispatch_matmul` of tokens."""
    return MATMUL(groups.rows(x) if groups else Rows(x), bank, sizes, backend=backend)


def _matmul_backward(backend: str, saved: Any, gradient: Array):
    x, bank, sizes, groups = saved
    towards_x = MATMUL(Rows(gradient), bank, sizes, contracted=2, backend=backend)
    if groups:
        towards_x, _ = _spread_backward((x, groups), towards_x)
    rows = groups.rows(x) if groups else Rows(x)
    towards_bank = OUTER(rows, Rows(gradient), sizes, backend=backend)
    return towards_x, towards_bank.astype(bank.dtype), None, None


matmul.defvjp(lambda backend, *args: (matmul(backend, *args), args), _matmul_backward)


@jax.custom_vjp
def spread(x: Array, groups: Groups) -> Array:
    """Returns `dispatch`."""
    return groups.of_tokens(x)


def _spread_backward(saved: Any, gradient: Array):
    x, groups = saved
    choices = gradient.shape[0] // max(1, x.shape[0])
    return groups.sum(gradient, jnp.ones((x.shape[0], choices), jnp.float32)), None


# The gradient needs only the number of tokens.
spread.defvjp(lambda x, groups: (spread(x, groups), (x[:, :0], groups)), _spread_backward)


@jax.custom_vjp
def combined(rows: Array, groups: Groups, weights: Array) -> Array:
    """Returns `combine`."""
    return groups.sum(rows, weights)


def _combined_backward(saved: Any, gradient: Array):
    rows, groups, weights = saved
    each = groups.of_tokens(gradient).astype(jnp.float32)
    towards_rows = (groups.of_choices(weights) * each).astype(rows.dtype)
    return towards_rows, None, groups.by_token(_dot(rows, each), weights)


combined.defvjp(lambda *args: (combined(*args), args), _combined_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul_combined(
    backend: str, rows: Array, bank: Array, groups: Groups, weights: Array
) -> Array:
    """Returns `combine_matmul`."""
    return groups.sum(MATMUL(Rows(rows), bank, groups.sizes, backend=backend), weights)


def _matmul_combined_backward(backend: str, saved: Any, gradient: Array):
    rows, bank, groups, weights = saved
    towards, scale = groups.rows(gradient), groups.of_choices(weights)
    each = MATMUL(towards, bank, groups.sizes, contracted=2, backend=backend)
    scaled = lambda a: (a.astype(jnp.float32) * scale).astype(rows.dtype)
    towards_bank = OUTER(Rows(scaled(rows)), towards, groups.sizes, backend=backend)
    towards_weights = groups.by_token(_dot(rows, each), weights)
    return scaled(each), towards_bank.astype(bank.dtype), None, towards_weights


matmul_combined.defvjp(
    lambda backend, *args: (matmul_combined(backend, *args), args), _matmul_combined_backward
)
