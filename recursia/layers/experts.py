"""Layers of which each token takes a few of many: mixtures of experts.

One selection and one product serve them all: the sigma-MoE and SwitchHead of MoEUT (Csordás et al.
2024, arXiv 2405.16039), the experts and attention of the Sparse Universal Transformer (Tan et al.
2023, arXiv 2310.07096) and WideNet (Xue et al. 2021, arXiv 2107.11817). A bank holds an entry for
each expert; what tokens choose is sorted by expert and multiplied group by group. No token is
dropped unless `limit` says so.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array, Float, Int

from recursia.params import Leaf

_ROWS = 64  # of a block; of 32, 64 and 128 none is the fastest on a CPU for all shapes


@struct.dataclass
class Choice:
    """The experts that each token takes, the best first."""

    index: Leaf  # [... k] of the expert
    weight: Leaf  # [... k] float32, the factor of its output


def choose(
    logits: Float[Array, "*B E"],
    k: int,
    *,
    score: Literal["sigmoid", "softmax"],
    is_renormalised: bool,
) -> Choice:
    """Returns the `k` experts of the highest scores; ties go to the earlier.

    Gradients reach the logits through the weights alone.

    Args:
      logits: of each expert, in float32.
      k: experts for each token.
      score: what a logit becomes: its own sigmoid, or its share of the softmax over experts.
      is_renormalised: whether a token's weights are divided by their sum (plus 1e-6).

    Raises:
      ValueError: if there are fewer than `k` experts.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: got {k}, takes 1 to {logits.shape[-1]}, the number of experts")
    scores = jax.nn.sigmoid(logits) if score == "sigmoid" else jax.nn.softmax(logits)
    weight, index = jax.lax.top_k(scores, k)
    if is_renormalised:
        weight /= weight.sum(-1, keepdims=True) + 1e-6
    return Choice(index, weight)


def limit(choice: Choice, num_experts: int, capacity: float | None) -> Choice:
    """Returns a choice in which no expert has more than its share of a sequence.

    Places go to earlier tokens first, so that none depends on a later one, but on the length of the
    sequence they do depend. What comes too late has weight zero.

    Args:
      choice: of tokens [B T k].
      num_experts: among which it was made.
      capacity: an expert's places over its mean number of tokens, `k T / E`; the places are rounded
        up. None is no bound.

    Raises:
      ValueError: if the capacity is not positive.
    """
    if capacity is None:
        return choice
    if not 0 < capacity < math.inf:
        raise ValueError(f"capacity: got {capacity}, takes a positive number")
    batch, length, k = choice.index.shape
    # In decimals: of 20 places times 1.1, a float would make 23.
    places = math.ceil(Fraction(str(capacity)) * k * length / num_experts)
    order = jnp.argsort(choice.index.reshape(batch, -1), axis=-1, stable=True)
    experts = jnp.take_along_axis(choice.index.reshape(batch, -1), order, axis=-1)
    here = jnp.arange(length * k)
    is_first = jnp.diff(experts, axis=-1, prepend=-1) > 0
    rank = here - jax.lax.cummax(jnp.where(is_first, here, 0), axis=1)
    rank = jnp.take_along_axis(rank, jnp.argsort(order, axis=-1), axis=-1)
    is_in = rank.reshape(choice.index.shape) < places
    return choice.replace(weight=jnp.where(is_in, choice.weight, 0.0))


def by_head(choice: Choice, num_experts: int) -> Choice:
    """Returns a choice [... N k] among heads' own experts, as one from a bank of all heads'.

    The bank holds the `num_experts` of the first head first, then those of the second.
    """
    first = num_experts * jnp.arange(choice.index.shape[-2])
    return choice.replace(index=choice.index + first[:, None])


def project(
    x: Float[Array, "*L D"], index: Int[Array, "*L k"], bank: Float[Array, "E D M"]
) -> Float[Array, "*L k M"]:
    """Returns each token's product with each of its experts.

    The leading axes say what shares an input: tokens `[B T]`, or also heads or earlier choices. An
    input of each choice's own is `project(x, index[..., None], bank)`.
    """
    rows, _, sizes, restore = _sort(x, index, bank.shape[0])
    return restore(grouped_matmul(rows, bank, sizes))


def mix(y: Float[Array, "*L k D"], weight: Float[Array, "*L k"]) -> Float[Array, "*L D"]:
    """Returns the weighted sum of what each token's experts gave, summed in float32."""
    return (y * weight[..., None]).sum(-2).astype(y.dtype)


def expert_mlp(
    x: Float[Array, "*L D"],
    choice: Choice,
    up: Float[Array, "E D M"],
    down: Float[Array, "E M D"],
    activation: Callable[[Array], Array],
    up_bias: Float[Array, "E M"] | None = None,
    down_bias: Float[Array, "E D"] | None = None,
) -> Float[Array, "*L D"]:
    """Returns the weighted sum of chosen experts' `activation(x up + up_bias) down + down_bias`."""
    rows, experts, sizes, restore = _sort(x, choice.index, up.shape[0])
    rows = grouped_matmul(rows, up, sizes)
    rows = activation(rows if up_bias is None else rows + up_bias[experts])
    rows = grouped_matmul(rows, down, sizes)
    rows = rows if down_bias is None else rows + down_bias[experts]
    return mix(restore(rows), choice.weight)


def _sort(x: Array, index: Array, num_experts: int):
    """Returns the chosen inputs sorted by expert, their experts, group sizes, and the way back."""
    if x.shape[:-1] != index.shape[:-1]:
        raise ValueError(f"experts: tokens are {x.shape[:-1]} but choices {index.shape[:-1]}.")
    flat = index.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    inverse = jnp.argsort(order)
    rows = jnp.repeat(x.reshape(-1, x.shape[-1]), index.shape[-1], axis=0)
    restore = lambda y: _permute(y, inverse, order).reshape(*index.shape, y.shape[-1])
    sizes = jnp.bincount(flat, length=num_experts)
    return _permute(rows, order, inverse), flat[order], sizes, restore


@jax.custom_vjp
def _permute(rows: Array, order: Array, inverse: Array) -> Array:
    """Rows in a new order; the gradient of a gather would be a scatter, though it is a gather."""
    return rows[order]


_permute.defvjp(
    lambda rows, order, inverse: (rows[order], inverse),
    lambda inverse, gradient: (gradient[inverse], None, None),
)


@jax.custom_vjp
def grouped_matmul(
    rows: Float[Array, "N D"], bank: Float[Array, "E D M"], group_sizes: Int[Array, "E"]
) -> Float[Array, "N M"]:
    """Returns the product of each row with its group's entry of the bank, summed in float32.

    A scan over blocks of rows that lie in one group each, as many as there can be. On a CPU
    `jax.lax.ragged_dot` does the work of every expert for every row: for 2048 rows and entries of
    64 x 64 it took 3 times as long forward and backward with 8 experts, 20 times with 64.

    Args:
      rows: sorted by group.
      bank: an entry for each group.
      group_sizes: rows of each group, some perhaps 0; they sum to N.
    """
    return _matmul.bind(rows, bank, group_sizes)


def _forward(rows: Array, bank: Array, group_sizes: Array):
    return _matmul.bind(rows, bank, group_sizes), (rows, bank, group_sizes)


def _backward(saved: tuple[Array, Array, Array], gradient: Array):
    rows, bank, group_sizes = saved
    towards_rows = _matmul.bind(gradient, bank.swapaxes(1, 2), group_sizes)
    towards_bank = _outer.bind(rows, gradient, group_sizes)
    return towards_rows, towards_bank.astype(bank.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def _matmul_reference(rows: Array, bank: Array, group_sizes: Array) -> Array:
    count = rows.shape[0]
    size, blocks = _blocks(group_sizes, count)
    padded = jnp.pad(rows, ((0, size), (0, 0)))

    def block(out: Array, block: tuple[Array, Array, Array]):
        expert, start, _ = block
        taken = jax.lax.dynamic_slice_in_dim(padded, start, size)
        y = jnp.dot(taken, bank[expert], preferred_element_type=jnp.float32)
        # The rows after the group's end are wrong, and the next block writes over them.
        return jax.lax.dynamic_update_slice_in_dim(out, y.astype(out.dtype), start, 0), None

    out = jnp.zeros((count + size, bank.shape[2]), rows.dtype)
    return jax.lax.scan(block, out, blocks)[0][:count]


def _outer_reference(left: Array, right: Array, group_sizes: Array) -> Array:
    """Sums over each group's rows of their outer products, in float32: the gradient of a bank."""
    size, blocks = _blocks(group_sizes, left.shape[0])
    left, right = (jnp.pad(rows, ((0, size), (0, 0))) for rows in (left, right))

    def block(out: Array, block: tuple[Array, Array, Array]):
        expert, start, stop = block
        is_in = start + jnp.arange(size) < stop
        a, b = (jax.lax.dynamic_slice_in_dim(rows, start, size) for rows in (left, right))
        a = jnp.where(is_in[:, None], a, 0)
        return out.at[expert].add(jnp.dot(a.T, b, preferred_element_type=jnp.float32)), None

    out = jnp.zeros((group_sizes.shape[0], left.shape[1], right.shape[1]), jnp.float32)
    return jax.lax.scan(block, out, blocks)[0]


def _blocks(group_sizes: Array, count: int) -> tuple[int, tuple[Array, Array, Array]]:
    """Returns the rows of a block, and each block's group, first row and its group's end.

    `g` groups that are not empty fill at most `(count + g (size - 1)) / size` blocks. Those left
    over begin behind the last row.
    """
    size = max(1, min(_ROWS, count))
    num_groups = group_sizes.shape[0]
    num_blocks = (count + min(num_groups, count) * (size - 1)) // size
    needed = -(-group_sizes // size)
    group = jnp.repeat(jnp.arange(num_groups), needed, total_repeat_length=num_blocks)
    stop = jnp.cumsum(group_sizes)
    number = jnp.arange(num_blocks) - (jnp.cumsum(needed) - needed)[group]
    start = (stop - group_sizes)[group] + size * number
    return size, (group, jnp.minimum(start, count), stop[group])


def _primitive(name: str, reference: Callable[..., Array]) -> Primitive:
    """Returns a function as one equation of a program.

    Nothing takes it apart then: its FLOPs can be counted without the padding of blocks, and no scan
    around it copies a bank that does not change for every block.
    """
    primitive = Primitive(name)

    def shape(*args: Any) -> jax.core.ShapedArray:
        out = jax.eval_shape(reference, *args)
        return jax.core.ShapedArray(out.shape, out.dtype)

    primitive.def_impl(jax.jit(reference))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(reference, multiple_results=False))
    mapped = lambda args, axes: (jax.vmap(reference, axes)(*args), 0)
    batching.primitive_batchers[primitive] = mapped
    return primitive


_matmul = _primitive("grouped_matmul", _matmul_reference)
_outer = _primitive("grouped_outer", _outer_reference)
