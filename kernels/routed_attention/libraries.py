"""Causal attention without positions or segments by kernels of libraries: cuDNN and splash."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..dispatch import Op
from .where import Where

try:
    from jax._src.dispatch import prim_requires_devices_during_lowering as _NEED_DEVICES
except ImportError:
    _NEED_DEVICES = None

Forward = tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]
Backward = tuple[Array, Array, Array, None]


def cudnn_forward(
    query: Array, key: Array, value: Array, where: Where, relative: Any = None, *, scale: float,
    window: int = 0,
) -> Forward:  # fmt: skip
    """Returns the results of `reference.forward`, except that log-sum-exp is rounded.

    jax rounds it to the dtype of the queries. `cudnn_backward`, which supports the same arguments,
    does not read it.
    """
    _decline_unless_causal(query, key, where, relative)
    out, logsum = _cudnn(query, key, value, scale, window)
    return out, logsum.swapaxes(1, 2).astype(jnp.float32)


def cudnn_backward(
    query: Array, key: Array, value: Array, where: Where, relative: Any,
    out: Array, logsum: Array, grad: Array, *, scale: float, window: int = 0,
) -> Backward:  # fmt: skip
    """Returns the results of `reference.backward`.

    The library recomputes its forward pass. XLA merges that with one of the same inputs in the same
    computation, as in a rematerialised step; otherwise this is about as slow as `gpu.backward`.
    """
    _decline_unless_causal(query, key, where, relative)
    run = lambda query, key, value: _cudnn(query, key, value, scale, window)[0]
    _, back = jax.vjp(run, query, key, value)
    return *back(grad), None


def splash_forward(
    query: Array, key: Array, value: Array, where: Where, relative: Any = None, *, scale: float,
    window: int = 0,
) -> Forward:  # fmt: skip
    """Returns the results of `reference.forward`."""
    _decline_unless_causal(query, key, where, relative)
    out, (logsum,) = _splash(query, key, value, scale, window, save_residuals=True)
    return out.swapaxes(1, 2), logsum


def splash_backward(
    query: Array, key: Array, value: Array, where: Where, relative: Any,
    out: Array, logsum: Array, grad: Array, *, scale: float, window: int = 0,
) -> Backward:  # fmt: skip
    """Returns the results of `reference.backward`.

    The library recomputes its forward pass, which XLA does not merge with another: nine matrix
    products instead of the seven of `tpu.backward`, which "auto" prefers.
    """
    _decline_unless_causal(query, key, where, relative)
    both = lambda *x: _splash(x[0], x[1], x[2], scale, window, save_residuals=False)
    run = lambda *x: both(*x).swapaxes(1, 2)
    _, back = jax.vjp(run, query, key, value)
    return *back(grad), None


def needs_devices(op: Op) -> Op:
    """Returns an op whose lowering has the program's devices, which cuDNN's partitioning needs.

    JAX asks only the primitives of the program whether they need devices, not those inside an op.
    """
    if _NEED_DEVICES is not None:
        _NEED_DEVICES.add(op.primitive)
    return op


def _decline_unless_causal(query: Array, key: Array, where: Where, relative: Any) -> None:
    if relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if any(leaf is not None for leaf in where):
        raise NotImplementedError("it is told no positions or segments, and skips nothing by them")
    if query.shape[1] != key.shape[1]:
        raise NotImplementedError(f"{query.shape[1]} queries are not {key.shape[1]} keys")


def _cudnn(
    query: Array, key: Array, value: Array, scale: float, window: int
) -> tuple[Array, Array]:
    if _NEED_DEVICES is None:
        raise NotImplementedError("this version of jax does not lower it inside of an op")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"it takes bfloat16 and float16, not {query.dtype}")
    if query.shape[3] % 8 or query.shape[3] > 128:
        raise NotImplementedError(f"heads of {query.shape[3]}: no multiple of 8 up to 128")
    if query.shape[1] % 2:
        raise NotImplementedError(f"{query.shape[1]} tokens are odd; its backward pass takes none")
    try:
        return jax.nn.dot_product_attention(
            query, key, value, scale=scale, is_causal=True, implementation="cudnn",
            return_residual=True, local_window_size=(window - 1, 0) if window else None,
        )  # fmt: skip
    except RuntimeError as error:  # of a jax without CUDA
        raise NotImplementedError(str(error)) from error


def _splash(
    query: Array, key: Array, value: Array, scale: float, window: int, *, save_residuals: bool
) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = query.shape[1:3]
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"it takes float32 and bfloat16, not {query.dtype}")
    if length % 128:
        raise NotImplementedError(f"{length} tokens are no multiple of 128")
    block = max(size for size in (128, 256, 512) if not length % size)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    shape = length, length
    seen = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([seen] * heads),
        block_sizes=sizes, head_shards=1, q_seq_shards=1, save_residuals=save_residuals,
    )  # fmt: skip
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.vmap(kernel)((query * scale).astype(query.dtype), key, value)
