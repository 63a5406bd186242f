"""Matrix product operators: a matrix as a product of small tensors, one for each pair of factors.

With I = i_1 ... i_n input and J = j_1 ... j_n output features,

    W[(i_1 ... i_n), (j_1 ... j_n)] = T_1[i_1, j_1] T_2[i_2, j_2] ... T_n[i_n, j_n]

where T_k[i, j] is a matrix from one bond to the next (Oseledets 2011, doi 10.1137/090752286). With
bonds as large as the smaller side of the matrix that they divide, every matrix is such a product.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia.traced_flops import uncounted

# From the bond on its left to that on its right; the tensors of one matrix have different sizes.
Tensor = Float[Array, "_ _ _ _"]
Shape = tuple[int, int, int, int]


def factors(width: int, count: int) -> tuple[int, ...]:
    """Returns `count` numbers near to each other whose product is a width, largest in the middle.

    They are the published ones for the published widths: 3072 is 4 x 4 x 8 x 6 x 4.
    """
    found, prime, primes = [1] * count, 2, []
    while width > 1:
        while width % prime == 0:
            primes.append(prime)
            width //= prime
        prime = prime + 1 if prime * prime <= width else max(width, 2)
    for prime in reversed(primes):
        found[found.index(min(found))] *= prime
    middle = count // 2
    # The next ones go to the right and left of it, then one further to the left and right.
    far = lambda place: (abs(place - middle), (place < middle) == bool((place - middle) % 2))
    at = dict(zip(sorted(range(count), key=far), sorted(found, reverse=True), strict=True))
    return tuple(at[place] for place in range(count))


def shapes(inputs: Sequence[int], outputs: Sequence[int], max_bond: int) -> list[Shape]:
    """Returns the shapes of all tensors.

    Args:
      inputs: factors of the input features.
      outputs: factors of the output features.
      max_bond: size to which bonds are cut; 0 cuts none.
    """
    sizes = [i * j for i, j in zip(inputs, outputs, strict=True)]
    full = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(len(sizes) + 1)]
    bonds = [min(size, max_bond or size) for size in full]
    return list(zip(bonds[:-1], inputs, outputs, bonds[1:], strict=True))


@functools.cache
def orthogonal(shape: Shape, is_left: bool) -> Float[np.ndarray, "Q I J P"]:
    """Returns a tensor whose bond towards the centre has orthonormal vectors, always the same."""
    before, i, j, after = shape
    tall = (before * i * j, after) if is_left else (i * j * after, before)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=tall))[0]
    return np.asarray((q if is_left else q.T).reshape(shape), np.float32)


def product(tensors: Sequence[Tensor]) -> Float[Array, "D F"]:
    """Returns the matrix that is the product of tensors."""
    x, count = tensors[0], len(tensors)
    for tensor in tensors[1:]:
        x = jnp.tensordot(x, tensor, 1)
    x = x.reshape(x.shape[1:-1]).transpose(*range(0, 2 * count, 2), *range(1, 2 * count, 2))
    return x.reshape(math.prod(x.shape[:count]), -1)


rebuilt = uncounted(product)


def product_flops(shapes: Sequence[Shape]) -> int:
    """Returns the FLOPs of `product` for tensors of these shapes."""
    total, size = 0, shapes[0][1] * shapes[0][2]
    for before, i, j, after in shapes[1:]:
        total += 2 * size * before * i * j * after
        size *= i * j
    return total


def split(
    matrix: Float[Array, "D F"], inputs: Sequence[int], outputs: Sequence[int], max_bond: int
) -> list[Tensor]:
    """Returns the tensors of a matrix, by singular values from left to right.

    All bonds are cut at once, in the decomposition that cuts none, as in the code of Liu et al.
    2023 (arXiv 2303.16753): the result is not that of cutting one bond after the other.

    Args:
      matrix: in float32.
      inputs: as in `shapes`.
      outputs: as in `shapes`.
      max_bond: as in `shapes`.
    """
    count, tensors, bond = len(inputs), [], 1
    order = [axis for k in range(count) for axis in (k, count + k)]
    rest = matrix.reshape(*inputs, *outputs).transpose(order)
    for i, j in zip(inputs[:-1], outputs[:-1], strict=True):
        u, s, v = jnp.linalg.svd(rest.reshape(bond * i * j, -1), full_matrices=False)
        tensors.append(u.reshape(bond, i, j, -1))
        bond, rest = len(s), s[:, None] * v
    tensors.append(rest.reshape(bond, inputs[-1], outputs[-1], 1))
    cut = zip(tensors, shapes(inputs, outputs, max_bond), strict=True)
    return [tensor[: shape[0], :, :, : shape[3]] for tensor, shape in cut]
