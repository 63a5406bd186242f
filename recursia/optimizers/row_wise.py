"""Row-wise Adam for tables of which a step reads few rows: two numbers of state for a row.

Adam keeps two numbers for each entry, and moves rows that no token has read for as long as their
mean lasts. Here a row has one mean square of its gradients and the number of steps in which it had
a gradient, and no mean of them; a row without a gradient stays as it is, its state too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

NUMBERS = 2  # of state for a row


class Rows(NamedTuple):
    """The state of tables, each of shape [..., rows, width].

    Attributes:
      square: mean square of the gradients of a row, over its entries and its steps, [..., rows].
      count: steps in which the row had a gradient, [..., rows].
    """

    square: PyTree[Array]
    count: PyTree[Array]


def scale_by_row_wise_adam(b2: float, eps: float) -> optax.GradientTransformation:
    """Returns a rule that divides gradients by the root of their row's mean square.

    Args:
      b2: decay of the mean square, in steps in which the row has a gradient.
      eps: added to the root.
    """

    def init(params: optax.Params) -> Rows:
        zeros = lambda table: jnp.zeros(table.shape[:-1], jnp.float32)
        return Rows(jax.tree.map(zeros, params), jax.tree.map(zeros, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[Any, Rows]:
        is_read = lambda grad: (grad != 0).any(-1)
        count = jax.tree.map(lambda grad, count: count + is_read(grad), updates, state.count)
        square = jax.tree.map(
            lambda grad, before: jnp.where(
                is_read(grad), b2 * before + (1 - b2) * jnp.square(grad).mean(-1), before
            ),
            updates,
            state.square,
        )

        def step(grad: Array, square: Array, count: Array) -> Array:
            corrected = square / (1 - b2 ** jnp.maximum(count, 1))
            return grad / (jnp.sqrt(corrected) + eps)[..., None]

        return jax.tree.map(step, updates, square, count), Rows(square, count)

    return optax.GradientTransformation(init, update)


def beside(
    rule: optax.GradientTransformation,
    tables: optax.GradientTransformation,
    is_table: PyTree[bool],
) -> optax.GradientTransformation:
    """Returns a rule for tables, and another for the other parameters, which it sees alone."""
    labels = jax.tree.map(lambda table: "tables" if table else "rest", is_table)
    return optax.partition({"tables": tables, "rest": rule}, labels)
