"""Choices of groups by tokens, sorted by group, and what is read and summed by them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .reference import Rows


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
        """Returns the token of each choice, sorted by group, of tokens [T ...].

        Raises:
          ValueError: if the number of choices is not a multiple of the number of tokens.
        """
        choices, tokens = self.order.shape[0], x.shape[0]
        if choices % max(1, tokens) or (choices and not tokens):
            raise ValueError(f"groups: {choices} choices are no multiple of {tokens} tokens.")
        return self.order // max(1, choices // max(1, tokens))

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
        """Returns each token's weighted sum of its rows in groups, computed in float32.

        Raises:
          ValueError: if rows, choices and weights differ in number.
        """
        count, choices = rows.shape[0], self.order.shape[0]
        if not count == choices == weights.size:
            raise ValueError(
                f"groups: {count} rows and {weights.size} weights of {choices} choices; takes one "
                "of each for each choice."
            )

        def add(total: Array, choice: tuple[Array, Array]):
            slot, weight = choice
            row = jnp.take(rows, slot, axis=0, mode="fill", fill_value=0)
            return total + row.astype(jnp.float32) * weight[:, None], None

        slots = jnp.where(self.place < self.sizes.sum(), self.place, count).reshape(weights.shape)
        # Three times as fast on a CPU as a sum over one gather.
        total = jnp.zeros((weights.shape[0], rows.shape[1]), jnp.float32)
        total, _ = jax.lax.scan(add, total, (slots.T, weights.T), unroll=16)
        # For a GPU, XLA may fuse a norm, its gradient and what they read in a form that has no
        # gathers: it would write all gathered rows to memory first.
        apart = functools.partial(jax.lax.platform_dependent, cuda=jax.lax.optimization_barrier)
        return apart(total.astype(rows.dtype), default=lambda total: total)


def group_choices(index: Int[Array, "T k"], num_groups: int) -> Groups:
    """Returns the choices of tokens sorted by group, and within a group by token.

    Args:
      index: groups chosen, each in [0, num_groups), or `num_groups` for none: such choices come
        last and belong to no group.
      num_groups: number of groups.
    """
    flat = index.reshape(-1).astype(jnp.int32)
    number = jnp.arange(flat.shape[0], dtype=jnp.int32)
    if (num_groups + 1) * flat.shape[0] < 2**31:
        # Numbers sort faster than pairs: 7 times on a CPU, for 2**17 choices.
        order = jnp.sort(flat * flat.shape[0] + number, stable=False) % max(1, flat.shape[0])
    else:
        order = jnp.argsort(flat, stable=True)
    argsort = functools.partial(jnp.argsort, stable=False)  # a TPU scatters sequentially
    inverse = lambda order: jnp.zeros_like(order).at[order].set(number, unique_indices=True)
    place = jax.lax.platform_dependent(order, tpu=argsort, default=inverse)
    return Groups(jnp.bincount(flat, length=num_groups), order, place)


def _each(a: Array, at: Array, is_in: Array) -> Array:
    """Returns the entries of `a` at some places, and zeros at masked ones."""
    at = jnp.where(is_in, at, a.shape[0])
    return jnp.take(a, at, axis=0, mode="fill", fill_value=0)
