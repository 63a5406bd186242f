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

The gradient of gathering tokens would be a scatter; since the places of a token's choices are
known, it is a gather and a sum over `k`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..dispatch import Implementation, Op, on_hopper
from . import megablox, reference, sizes
from .groups import Groups
from .groups import group_choices as group_choices
from .reference import Rows

MATMUL = Op(
    "grouped_matmul",
    reference.matmul,
    (
        Implementation("megablox", "tpu", megablox.matmul, sizes.of_tpu_matmul),
        on_hopper(__name__, "matmul", sizes.of_gpu_matmul),
    ),
    lambda rows, bank, sizes, contracted=1: 2 * rows.shape[0] * bank.shape[1] * bank.shape[2],
)
OUTER = Op(
    "grouped_outer",
    reference.outer,
    (
        Implementation("megablox", "tpu", megablox.outer, sizes.of_tpu_outer),
        on_hopper(__name__, "outer", sizes.of_gpu_outer),
    ),
    lambda left, right, sizes: 2 * left.shape[0] * left.shape[1] * right.shape[1],
)
# Of ones and rows: the sums of the rows of each group. No FLOPs of a model are counted for it.
SUM = dataclasses.replace(OUTER, name="grouped_sum", flops=None)


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
    return _matmul(backend, rows, bank, group_sizes, None)


def dispatch_matmul(
    x: Float[Array, "T D"], bank: Float[Array, "E D M"], groups: Groups, *, backend: str = "auto"
) -> Float[Array, "N M"]:
    """Returns the product of each token with the entry of each of its groups, sorted by group.

    The product of a choice of no group is zero.

    Raises:
      ValueError: if widths or numbers of groups differ, or the number of choices is not a multiple
        of the number of tokens.
    """
    return _matmul(backend, x, bank, groups.sizes, groups)


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

    Raises:
      ValueError: if widths or numbers of groups, rows, choices or weights differ.
    """
    return _matmul_combined(backend, rows, bank, groups, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_each(backend: str, vectors: Array, index: Array, sizes: Array) -> Array:
    return jnp.take(vectors, index, axis=0, mode="fill", fill_value=0)


def of_each(
    vectors: Float[Array, "E M"],
    index: Int[Array, "N"],
    group_sizes: Int[Array, "E"],
    *,
    backend: str = "auto",
) -> Float[Array, "N M"]:
    """Returns the vector of each row's group, such as a bias; zeros for rows of no group.

    The gradient is a grouped product with ones, summed in float32. That of indexing would scatter
    all N M numbers into few places, in an order that a GPU keeps only by sorting them.

    Args:
      vectors: one for each group.
      index: the group of each row, ascending; E for none.
      group_sizes: as in `grouped_matmul`.
      backend: as in `grouped_matmul`.
    """
    return _of_each(backend, vectors, index, group_sizes)


@jax.custom_vjp
def dispatch(x: Float[Array, "T D"], groups: Groups) -> Float[Array, "N D"]:
    """Returns each token once for each of its choices, sorted by group; zeros for no group.

    Raises:
      ValueError: if the number of choices is not a multiple of the number of tokens.
    """
    return groups.of_tokens(x)


@jax.custom_vjp
def combine(
    rows: Float[Array, "N M"], groups: Groups, weights: Float[Array, "T k"]
) -> Float[Array, "T M"]:
    """Returns each token's weighted sum of its rows, computed in float32, in the dtype of the rows.

    The groups may be of other tokens than those multiplied, if the choices of each are adjacent.

    Raises:
      ValueError: if rows, choices and weights differ in number.
    """
    return groups.sum(rows, weights)


def _multiply(backend: str, rows: Rows, bank: Array, sizes: Array, contracted: int = 1) -> Array:
    if rows.shape[1] != bank.shape[contracted]:
        raise ValueError(
            f"grouped_matmul: rows are {rows.shape[1]} wide but the bank takes "
            f"{bank.shape[contracted]}."
        )
    if sizes.shape[0] != bank.shape[0]:
        raise ValueError(
            f"grouped_matmul: {sizes.shape[0]} groups but {bank.shape[0]} bank entries."
        )
    return MATMUL(rows, bank, sizes, contracted=contracted, backend=backend)


def _dot(a: Array, b: Array) -> Array:
    """Returns the dot product of each row with that of another array, in float32."""
    return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(backend: str, x: Array, bank: Array, sizes: Array, groups: Groups | None) -> Array:
    return _multiply(backend, groups.rows(x) if groups else Rows(x), bank, sizes)


def _matmul_backward(backend: str, saved: Any, gradient: Array):
    x, bank, sizes, groups = saved
    towards_x = _multiply(backend, Rows(gradient), bank, sizes, contracted=2)
    if groups:
        towards_x, _ = _dispatch_backward((x, groups), towards_x)
    rows = groups.rows(x) if groups else Rows(x)
    towards_bank = OUTER(rows, Rows(gradient), sizes, backend=backend)
    return towards_x, towards_bank.astype(bank.dtype), None, None


def _of_each_backward(backend: str, saved: Any, gradient: Array):
    like, sizes = saved
    ones = jnp.ones((gradient.shape[0], 1), gradient.dtype)
    total = SUM(Rows(ones), Rows(gradient), sizes, backend=backend)[:, 0]
    return total.astype(like.dtype), None, None


def _dispatch_backward(saved: Any, gradient: Array):
    x, groups = saved
    choices = gradient.shape[0] // max(1, x.shape[0])
    return groups.sum(gradient, jnp.ones((x.shape[0], choices), jnp.float32)), None


def _combine_backward(saved: Any, gradient: Array):
    rows, groups, weights = saved
    each = groups.of_tokens(gradient).astype(jnp.float32)
    towards_rows = (groups.of_choices(weights) * each).astype(rows.dtype)
    return towards_rows, None, groups.by_token(_dot(rows, each), weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul_combined(
    backend: str, rows: Array, bank: Array, groups: Groups, weights: Array
) -> Array:
    return groups.sum(_multiply(backend, Rows(rows), bank, groups.sizes), weights)


def _matmul_combined_backward(backend: str, saved: Any, gradient: Array):
    rows, bank, groups, weights = saved
    towards, scale = groups.rows(gradient), groups.of_choices(weights)
    each = _multiply(backend, towards, bank, groups.sizes, contracted=2)
    scaled = lambda a: (a.astype(jnp.float32) * scale).astype(rows.dtype)
    towards_bank = OUTER(Rows(scaled(rows)), towards, groups.sizes, backend=backend)
    towards_weights = groups.by_token(_dot(rows, each), weights)
    return scaled(each), towards_bank.astype(bank.dtype), None, towards_weights


_of_each.defvjp(
    lambda backend, vectors, index, sizes: (
        _of_each(backend, vectors, index, sizes),
        (vectors[:0], sizes),
    ),
    _of_each_backward,
)
_matmul.defvjp(lambda backend, *args: (_matmul(backend, *args), args), _matmul_backward)
# The gradient of `dispatch` needs only the number of tokens.
dispatch.defvjp(lambda x, groups: (dispatch(x, groups), (x[:, :0], groups)), _dispatch_backward)
combine.defvjp(lambda *args: (combine(*args), args), _combine_backward)
_matmul_combined.defvjp(
    lambda backend, *args: (_matmul_combined(backend, *args), args), _matmul_combined_backward
)
