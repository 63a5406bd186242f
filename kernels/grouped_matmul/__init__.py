"""Grouped matmul: multiplies rows by the bank entry of their group, for mixtures of experts.

The rows of a group are adjacent; groups are ragged, may be empty, and are not padded to a capacity.
`group_choices` orders the choices of tokens that take `k` of `E` groups; then `dispatch_matmul`
reads each token `k` times instead of copying it, and `combine_matmul` sums the products of its
groups. Rows after the last group belong to none, as choices of groups on another device do: every
op and every gradient treats them as zeros, whatever they contain, and returns zeros for them. For
N = k T choices, widths D of a token and M < D of a group, the ops move these numbers of items:

  dispatch_matmul: N D read and N M written; copying tokens first would add 2 N D.
  combine_matmul: N D written by the product and read by the sum. Adding to the T D sums inside the
    product would need float32 atomics: up to 8 bytes for each of N D, where two passes in bfloat16
    move 4, and the order of additions would change from run to run.
  Its gradient: N D read and N M written, twice. The gradient of the weights is computed from those
    N M, so that the N D of the product is neither kept nor recomputed.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import gradients
from .gradients import MATMUL, OUTER, Groups
from .reference import Rows

__all__ = [
    "MATMUL",
    "OUTER",
    "Groups",
    "Rows",
    "combine",
    "combine_matmul",
    "dispatch",
    "dispatch_matmul",
    "group_choices",
    "grouped_matmul",
]


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
    argsort = functools.partial(jnp.argsort, stable=False)
    place = jax.lax.platform_dependent(order, tpu=argsort, default=_inverse)
    return Groups(jnp.bincount(flat, length=num_groups), order, place)


def _inverse(order: Int[Array, "N"]) -> Int[Array, "N"]:
    # Not on a TPU, which scatters sequentially.
    number = jnp.arange(order.shape[0], dtype=order.dtype)
    return jnp.zeros_like(order).at[order].set(number, unique_indices=True)


def grouped_matmul(
    rows: Float[Array, "N D"],
    bank: Float[Array, "E D M"],
    group_sizes: Int[Array, "E"],
    *,
    backend: str = "auto",
) -> Float[Array, "N M"]:
    """Returns the product of each row with its group's entry of the bank, summed in float32.

    The work is proportional to N, plus at most one block of rows for each group. The gradient of
    the bank is summed in float32 and has the dtype of the bank.

    Args:
      rows: rows sorted by group.
      bank: an entry for each group.
      group_sizes: rows of each group, 0 or more; they sum to N or less. The rows after them belong
        to no group: their products and gradients are zero.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if widths or numbers of groups differ.
    """
    _check("grouped_matmul", rows, bank, group_sizes)
    return gradients.matmul(backend, rows, bank, group_sizes, None)


def dispatch(x: Float[Array, "T D"], groups: Groups) -> Float[Array, "N D"]:
    """Returns each token once for each of its choices, sorted by group; zeros for no group.

    Args:
      x: tokens, with equally many choices each.
      groups: the choices of the tokens.

    Raises:
      ValueError: if the number of choices is not a multiple of the number of tokens.
    """
    _check_choices("dispatch", x, groups)
    return gradients.spread(x, groups)


def dispatch_matmul(
    x: Float[Array, "T D"], bank: Float[Array, "E D M"], groups: Groups, *, backend: str = "auto"
) -> Float[Array, "N M"]:
    """Returns the product of each token with the entry of each of its groups, sorted by group.

    The product of a choice of no group is zero.

    Args:
      x: tokens, with equally many choices each.
      bank: an entry for each group.
      groups: the choices of the tokens.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if widths or numbers of groups differ, or the number of choices is not a multiple
        of the number of tokens.
    """
    _check("dispatch_matmul", x, bank, groups.sizes)
    _check_choices("dispatch_matmul", x, groups)
    return gradients.matmul(backend, x, bank, groups.sizes, groups)


def combine(
    rows: Float[Array, "N M"], groups: Groups, weights: Float[Array, "T k"]
) -> Float[Array, "T M"]:
    """Returns each token's weighted sum of its rows, computed in float32, in the dtype of the rows.

    Rows of no group add nothing.

    Args:
      rows: one for each choice, sorted by group.
      groups: the choices of the tokens. These may be other tokens than those multiplied, if the
        choices of each are adjacent.
      weights: weight of each choice.

    Raises:
      ValueError: if rows, choices and weights differ in number.
    """
    _check_weights("combine", rows, groups, weights)
    return gradients.combined(rows, groups, weights)


def combine_matmul(
    rows: Float[Array, "N D"],
    bank: Float[Array, "E D M"],
    groups: Groups,
    weights: Float[Array, "T k"],
    *,
    backend: str = "auto",
) -> Float[Array, "T M"]:
    """Returns each token's weighted sum of its rows' products with the entries of their groups.

    It equals `combine` of `grouped_matmul`, but the gradient neither keeps nor recomputes rows of
    width M, which saves memory if entries give more than they take.

    Args:
      rows: one for each choice, sorted by group.
      bank: an entry for each group.
      groups: the choices of the tokens.
      weights: weight of each choice.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if widths or numbers of groups, rows, choices or weights differ.
    """
    _check("combine_matmul", rows, bank, groups.sizes)
    _check_weights("combine_matmul", rows, groups, weights)
    return gradients.matmul_combined(backend, rows, bank, groups, weights)


def _check(name: str, rows: Array, bank: Array, group_sizes: Array) -> None:
    if rows.shape[1] != bank.shape[1]:
        raise ValueError(
            f"{name}: rows are {rows.shape[1]} wide but the bank takes {bank.shape[1]}."
        )
    if group_sizes.shape[0] != bank.shape[0]:
        raise ValueError(f"{name}: {group_sizes.shape[0]} groups but {bank.shape[0]} bank entries.")


def _check_choices(name: str, x: Array, groups: Groups) -> None:
    choices, tokens = groups.order.shape[0], x.shape[0]
    if choices % max(1, tokens) or (choices and not tokens):
        raise ValueError(f"{name}: {choices} choices are no multiple of {tokens} tokens.")


def _check_weights(name: str, rows: Array, groups: Groups, weights: Array) -> None:
    choices = groups.order.shape[0]
    if not rows.shape[0] == choices == weights.size:
        raise ValueError(
            f"{name}: {rows.shape[0]} rows and {weights.size} weights of {choices} choices; takes "
            "one of each for each choice."
        )
