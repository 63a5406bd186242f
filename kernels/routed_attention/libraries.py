"""Causal attention of a row's own keys by kernels of libraries: cuDNN's and splash attention.

They compare places, not positions, and so take only keys of the same tokens in their order. Rows
are padded at the end to a length that they take, which no earlier query sees. A library's backward
pass reads the residuals of its own forward pass, which are the output and its log-sum-exp.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..dispatch import NEED_DEVICES
from .blocks import even
from .where import Where

LANES, MOST = 128, 512  # the least and the largest block of splash attention
FUSED = 4  # blocks of keys up to which splash's backward pass is one kernel
Forward = tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]
Backward = tuple[Array, Array, Array, None]


def cudnn_forward(
    query: Array, key: Array, value: Array, where: Where, relative: Any = None, *, scale: float,
    window: int = 0,
) -> Forward:  # fmt: skip
    """Returns the results of `reference.forward`."""
    run, length = _cudnn(query, key, where, relative, scale, window)
    padded = [_pad(x, length) for x in (query, key, value)]
    out, pull = jax.vjp(run, *padded)
    (logsum,) = (leaf for leaf in jax.tree.leaves(pull) if _is_logsum(leaf, query, length))
    return out[:, : query.shape[1]], logsum[..., : query.shape[1]]


def cudnn_backward(
    query: Array, key: Array, value: Array, where: Where, relative: Any,
    out: Array, logsum: Array, grad: Array, *, scale: float, window: int = 0,
) -> Backward:  # fmt: skip
    """Returns the results of `reference.backward`."""
    run, length = _cudnn(query, key, where, relative, scale, window)
    padded = [_pad(x, length) for x in (query, key, value)]
    kept = _pad(out, length), _pad(logsum, length, axis=2)
    grads = _pull(run, padded, *kept, _pad(grad, length))
    return *(x[:, : query.shape[1]] for x in grads), None


def splash_forward(
    query: Array, key: Array, value: Array, where: Where, relative: Any = None, *, scale: float,
    window: int = 0, interpret: bool = False,
) -> Forward:  # fmt: skip
    """Returns the results of `reference.forward`."""
    given = query, key, where, relative, scale, window
    run, length = _splash(*given, save_residuals=True, interpret=interpret)
    out, (logsum,) = run(*(_pad(x, length) for x in (query, key, value)))
    return out.swapaxes(1, 2)[:, : query.shape[1]], logsum[..., : query.shape[1]]


def splash_backward(
    query: Array, key: Array, value: Array, where: Where, relative: Any,
    out: Array, logsum: Array, grad: Array, *, scale: float, window: int = 0,
    interpret: bool = False,
) -> Backward:  # fmt: skip
    """Returns the results of `reference.backward`."""
    given = query, key, where, relative, scale, window
    run, length = _splash(*given, save_residuals=False, interpret=interpret)
    padded = [_pad(x, length) for x in (query, key, value)]
    heads = lambda x: _pad(x, length).swapaxes(1, 2)
    grads = _pull(run, padded, heads(out), _pad(logsum, length, axis=2), heads(grad))
    return *(x[:, : query.shape[1]] for x in grads), None


def _pull(run: Callable, inputs: Any, out: Array, logsum: Array, grad: Array) -> Any:
    """Returns the gradients of the inputs, by the residuals that an earlier forward pass saved.

    The forward pass that is traced here has no use once its residuals are replaced, and goes.
    """
    made, pull = jax.vjp(run, *inputs)
    leaves, tree = jax.tree.flatten(pull)
    is_logsum = lambda leaf: leaf.shape == logsum.shape and leaf.dtype == jnp.float32
    assert sum(leaf is made for leaf in leaves) == sum(map(is_logsum, leaves)) == 1
    kept = [out if x is made else logsum if is_logsum(x) else x for x in leaves]
    return jax.tree.unflatten(tree, kept)(grad)


def _is_logsum(leaf: Any, query: Array, length: int) -> bool:
    return leaf.shape == (query.shape[0], query.shape[2], length) and leaf.dtype == jnp.float32


def _pad(x: Array, length: int, axis: int = 1) -> Array:
    """Returns `x` with zeros after its tokens, up to `length` of them."""
    padding = [(0, length - x.shape[axis] if each == axis else 0) for each in range(x.ndim)]
    return jnp.pad(x, padding)


def _decline_unless_causal(query: Array, key: Array, where: Where, relative: Any) -> None:
    if relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if where.query_positions is not None or where.key_positions is not None:
        raise NotImplementedError("it is told no positions, and skips nothing by them")
    if where.key_segments is not None:
        raise NotImplementedError("it takes segments only of queries whose tokens the keys are of")
    if query.shape[1] != key.shape[1]:
        raise NotImplementedError(f"{query.shape[1]} queries are not {key.shape[1]} keys")


def _cudnn(
    query: Array, key: Array, where: Where, relative: Any, scale: float, window: int
) -> tuple[Callable, int]:
    """Returns cuDNN's attention [B T N H], and an even length that it takes."""
    _decline_unless_causal(query, key, where, relative)
    if NEED_DEVICES is None:
        raise NotImplementedError("this version of jax does not lower it inside of an op")
    if where.query_segments is not None:
        raise NotImplementedError("it takes no segments")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"it takes bfloat16 and float16, not {query.dtype}")
    if query.shape[3] % 8 or query.shape[3] > 128:
        raise NotImplementedError(f"heads of {query.shape[3]}: no multiple of 8 up to 128")

    def run(query: Array, key: Array, value: Array) -> Array:
        try:
            return jax.nn.dot_product_attention(
                query, key, value, scale=scale, is_causal=True, implementation="cudnn",
                local_window_size=(window - 1, 0) if window else None,
            )  # fmt: skip
        except RuntimeError as error:  # of a jax without CUDA
            raise NotImplementedError(str(error)) from error

    return run, query.shape[1] + query.shape[1] % 2


def _splash(
    query: Array, key: Array, where: Where, relative: Any, scale: float, window: int, *,
    save_residuals: bool, interpret: bool,
) -> tuple[Callable, int]:  # fmt: skip
    """Returns splash attention [B N T H], and a length of equal blocks that it takes."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _decline_unless_causal(query, key, where, relative)
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"it takes float32 and bfloat16, not {query.dtype}")
    block = even(query.shape[1], MOST, LANES)
    length = -(-query.shape[1] // block) * block
    # One backward kernel instead of two computes the scores once, but writes the gradients of
    # queries for each block of keys, and visits masked blocks.
    is_fused = not window and length <= FUSED * block
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=None if is_fused else block, block_kv_dq=None if is_fused else block,
        use_fused_bwd_kernel=is_fused,
    )  # fmt: skip
    seen = masks.CausalMask((length, length))
    if window:
        seen = masks.LocalMask((length, length), (window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([seen] * query.shape[2]),
        block_sizes=sizes, head_shards=1, q_seq_shards=1, save_residuals=save_residuals,
        interpret=interpret,
    )  # fmt: skip
    segments = where.query_segments
    if segments is not None:
        segments = _pad(segments.astype(jnp.int32), length)
        segments = splash.SegmentIds(q=segments, kv=segments)

    def run(query: Array, key: Array, value: Array) -> Any:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        return jax.vmap(kernel)((query * scale).astype(query.dtype), key, value, segments)

    return run, length
