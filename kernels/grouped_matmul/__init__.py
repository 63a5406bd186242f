"""Products of rows with the entry of their group, and what mixtures of experts make of them.

Rows of a group follow one another; groups are ragged, some are empty, and none is padded to a
capacity. Tokens that choose `k` of `E` groups are ordered by `group_choices`; then
`dispatch_matmul` reads each token `k` times instead of copying it, and `combine_matmul` sums what
its groups gave. Rows behind the last group are in none, as choices of groups that another device
holds: every op here takes them for zeros, whatever they hold, gives zeros for them, and so do the
gradients. For N = k T choices, widths D of a token and M < D of a group, in items of memory:

  dispatch_matmul: N D read and N M written; copies in between would add 2 N D.
  combine_matmul: N D written by the product, read again by the sum. Adding to the T D sums from
    inside the product would need float32 atomics: up to 8 bytes for each of N D where two passes
    in bfloat16 move 4, and in an order that changes from run to run.
  Its gradient: N D read and N M written, twice; the weights' gradient is read off those N M, so
    that the N D of the product is neither kept nor made again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import gradients
from .gradients import COMBINE, MATMUL, OUTER, Groups

__all__ = [
    "COMBINE",
    "MATMUL",
    "OUTER",
    "Groups",
    "combine",
    "combine_matmul",
    "dispatch",
    "dispatch_matmul",
    "group_choices",
    "grouped_matmul",
]


def group_choices(index: Int[Array, "T k"], num_groups: int) -> Groups:
    """Returns tokens' choices in the order of groups, those of one group by token.

    Args:
      index: groups chosen, each in [0, num_groups), or `num_groups` for none: such choices come
        last and are in no group.
      num_groups: from which they are chosen.
    """
    flat = index.reshape(-1).astype(jnp.int32)
    number = jnp.arange(flat.shape[0], dtype=jnp.int32)
    if (num_groups + 1) * flat.shape[0] < 2**31:
        # Numbers alone sort faster than pairs: on a CPU 7 times, of 2**17 choices.
        order = jnp.sort(flat * flat.shape[0] + number, stable=False) % max(1, flat.shape[0])
    else:
        order = jnp.argsort(flat, stable=True)
    argsort = functools.partial(jnp.argsort, stable=False)
    place = jax.lax.platform_dependent(order, tpu=argsort, default=_inverse)
    return Groups(jnp.bincount(flat, length=num_groups), order, place)


def _inverse(order: Int[Array, "N"]) -> Int[Array, "N"]:
    # A TPU scatters one number after the other.
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

    The work follows N, with at most one block of rows more for each group. The bank's gradient is
    summed in float32 and has its dtype.

    Args:
      rows: sorted by group.
      bank: an entry for each group.
      group_sizes: rows of each group, some perhaps 0; they sum to N or less, and rows behind are
        in no group: their products are zero and so are their gradients.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if widths or numbers of groups differ.
    """
    _check("grouped_matmul", rows, bank, group_sizes)
    return gradients.grouped(backend, rows, bank, group_sizes)


def dispatch(
    x: Float[Array, "T D"], groups: Groups, *, backend: str = "auto"
) -> Float[Array, "N D"]:
    """Returns each token once for each of its choices, in the order of groups; zeros for none.

    Args:
      x: the tokens, each of which made the same number of the choices.
      groups: what the tokens chose.
      backend: of the gradient, which sums over a token's choices in float32.

    Raises:
      ValueError: if choices are no multiple of tokens.
    """
    _check_choices("dispatch", x, groups)
    return gradients.spread(backend, x, groups)


def dispatch_matmul(
    x: Float[Array, "T D"],
    bank: Float[Array, "E D M"],
    groups: Groups,
    *,
    backend: str = "auto",
) -> Float[Array, "N M"]:
    """Returns each token's product with each of its groups' entries, in the order of groups.

    Choices of no group have products of zero.

    Args:
      x: the tokens, each of which made the same number of the choices.
      bank: an entry for each group.
      groups: what the tokens chose.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if widths or numbers of groups differ, or choices are no multiple of tokens.
    """
    _check("dispatch_matmul", x, bank, groups.sizes)
    _check_choices("dispatch_matmul", x, groups)
    return gradients.dispatched(backend, x, bank, groups)


def combine(
    rows: Float[Array, "N M"],
    groups: Groups,
    weights: Float[Array, "T k"],
    *,
    backend: str = "auto",
) -> Float[Array, "T M"]:
    """Returns each token's weighted sum of its rows, in float32, in the rows' dtype.

    Rows in no group add nothing.

    Args:
      rows: one for each choice, in the order of groups.
      groups: what the tokens chose; tokens here may be others than those multiplied, if their
        choices follow one another.
      weights: of each choice.
      backend: "auto", "reference", or the name of an implementation.

    Raises:
      ValueError: if rows, choices and weights are not as many.
    """
    _check_weights("combine", rows, groups, weights)
    return gradients.combined(backend, rows, groups, weights)


def combine_matmul(
    rows: Float[Array, "N D"],
    bank: Float[Array, "E D M"],
    groups: Groups,
    weights: Float[Array, "T k"],
    *,
    backend: str = "auto",
) -> Float[Array, "T M"]:
    """Returns each token's weighted sum of its rows' products with their groups' entries.

    As `combine` of `grouped_matmul`, but no row of width M is kept for the gradient or made again
    in it: the form for entries that are wider than the rows.

    Args:
      rows: one for each choice, in the order of groups.
      bank: an entry for each group.
      groups: what the tokens chose.
      weights: of each choice.
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
