"""What replicas send one another: differences of parameters in a format, gathered and averaged.

Values in "float4" have a sign and three bits of exponent and no mantissa (E3M0): 0, or s 2^(k - 7)
with k from 1 to 7, where s is the largest magnitude of the matrix. A value is rounded to the
nearest, and two of them share a byte. Sums are in float32.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from recursia.fragments import Fragment
from recursia.params import Leaf
from recursia.replicas import Exchange
from recursia.sharding import REPLICA, Rules, partition

_SIZES = (0.0, *(2.0**-k for k in range(6, -1, -1)))  # of the codes of "float4", over the scale
_MINUS = 8  # the bit of a code that is its sign


@struct.dataclass
class Sent:
    """An array of all replicas in the format of the exchange.

    Attributes:
      values: as they are in "float32" and "bfloat16"; in "float4" a code, of which 4 bits count.
      scale: in "float4", of each matrix, with as many axes as `values`; None in other formats.
    """

    values: Leaf  # [M ...]
    scale: Leaf | None = None  # [M E 1 ...] of a bank, [M 1 ...] of what is in none


def encoded(x: Float[Array, "M ..."], exchange: Exchange, is_bank: bool) -> Sent:
    """Returns an array in a format.

    Args:
      x: of each replica.
      exchange: the format.
      is_bank: whether the second axis is of matrices, each with a scale of its own.
    """
    if exchange != "float4":
        return Sent(x.astype(exchange))
    size = jnp.abs(x)
    scale = size.max(tuple(range(1 + is_bank, x.ndim)), keepdims=True)
    share = size / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(_SIZES)]
    level = sum((share >= middle).astype(jnp.uint8) for middle in middles)
    return Sent(level + jnp.where(x < 0, jnp.uint8(_MINUS), jnp.uint8(0)), scale)


def decoded(sent: Sent) -> Float[Array, "M ..."]:
    """Returns what was encoded, in float32."""
    if sent.scale is None:
        return sent.values.astype(jnp.float32)
    signed = jnp.array([*_SIZES, *(-size for size in _SIZES)], jnp.float32)
    return signed[sent.values] * sent.scale


def mean(sent: list[Sent], fragment: Fragment, mesh: Mesh, rules: Rules) -> list[Array]:
    """Returns the mean over replicas of every array of a fragment, in float32.

    Each device gathers its own shard of the arrays of all replicas, in one all-gather over the mesh
    axis of replicas. All compute the same mean of them, to the bit.

    Args:
      sent: what each replica sends.
      fragment: of which.
      mesh: the devices.
      rules: by which they shard parameters.
    """
    places = [partition(spec.axes, rules) for spec in fragment.taken]
    apart, whole = PartitionSpec(REPLICA), None
    ins = [
        Sent(PartitionSpec(REPLICA, *place), whole if each.scale is None else apart)
        for each, place in zip(sent, places, strict=True)
    ]

    def run(sent: list[Sent]) -> list[Array]:
        everyone = _gathered(sent) if mesh.shape[REPLICA] > 1 else sent
        return [decoded(each).mean(0) for each in everyone]

    axes = set(mesh.axis_names)
    return jax.shard_map(run, in_specs=(ins,), out_specs=places, axis_names=axes, check_vma=False)(
        sent
    )


def _gathered(sent: list[Sent]) -> list[Sent]:
    """Returns the arrays of all replicas, from those of the replicas on this device."""
    values = _flat([each.values for each in sent])
    scales = [each.scale for each in sent if each.scale is not None]
    if not scales:
        bits = jnp.uint16 if values.dtype == jnp.bfloat16 else values.dtype
        wire = jax.lax.bitcast_convert_type(values, bits)  # which a CPU would widen
        values = jax.lax.bitcast_convert_type(_all(wire), values.dtype)
        return [Sent(x) for x in _apart(values, [each.values for each in sent])]
    count = values.shape[1]
    pairs = jnp.pad(values, ((0, 0), (0, count % 2))).reshape(len(values), -1, 2)
    packed = pairs[..., 0] | pairs[..., 1] << 4
    beside = jax.lax.bitcast_convert_type(_flat(scales), jnp.uint8)
    wire = _all(jnp.concatenate([packed, beside.reshape(len(values), -1)], 1))
    packed, beside = wire[:, : packed.shape[1]], wire[:, packed.shape[1] :]
    codes = jnp.stack([packed & 15, packed >> 4], -1).reshape(len(wire), -1)[:, :count]
    scale = jax.lax.bitcast_convert_type(beside.reshape(len(wire), -1, 4), jnp.float32)
    pairs = zip(_apart(codes, [each.values for each in sent]), _apart(scale, scales), strict=True)
    return [Sent(*pair) for pair in pairs]


def _all(wire: Array) -> Array:
    return jax.lax.all_gather(wire, REPLICA, axis=0, tiled=True)


def _flat(arrays: list[Array]) -> Array:
    return jnp.concatenate([x.reshape(len(x), -1) for x in arrays], 1)


def _apart(flat: Array, like: list[Array]) -> list[Array]:
    """Returns the arrays that `_flat` joined, of as many replicas as there are now."""
    ends = [math.prod(x.shape[1:]) for x in like]
    cuts = [sum(ends[: n + 1]) for n in range(len(ends) - 1)]
    parts = zip(jnp.split(flat, cuts, 1), like, strict=True)
    return [part.reshape(len(flat), *x.shape[1:]) for part, x in parts]
