"""Causal attention of a row's own keys by kernels of libraries: cuDNN's and splash attention.

They compare places, not positions, and so take only keys of the same tokens in their order. Rows
are padded at the end to a length that they take, which no earlier query sees. A library's backward
pass reads the residuals of its own forward pass, which are the output and its log-sum-exp.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..dispatch import NEED_DEVICES
from .blocks import even
from .where import Inputs, Results, Scoring, decline

LANES, MOST = 128, 512  # the least and the largest block of splash attention
FUSED = 4  # blocks of keys up to which splash's backward pass is one kernel
Gradients = tuple[Array, Array, Array, None]


def cudnn_forward(given: Inputs, *, scoring: Scoring) -> Results:
    """Returns the results of `reference.forward`."""
    run, length = _cudnn(given, scoring)
    out, pull = jax.vjp(run, *(_pad(x, length) for x in given[:3]))
    shape, count = (given.query.shape[0], given.query.shape[2], length), given.query.shape[1]
    (lse,) = (leaf for leaf in jax.tree.leaves(pull) if _is_lse(leaf, shape))
    return Results(out[:, :count], lse[..., :count])


def cudnn_backward(given: Inputs, made: Results, grad: Array, *, scoring: Scoring) -> Gradients:
    """Returns the results of `reference.backward`."""
    return _pull(*_cudnn(given, scoring), given, made.out, made.lse, grad)


def splash_forward(given: Inputs, *, scoring: Scoring, interpret: bool = False) -> Results:
    """Returns the results of `reference.forward`."""
    run, length = _splash(given, scoring, save_residuals=True, interpret=interpret)
    out, (lse,) = run(*(_pad(x, length) for x in given[:3]))
    count = given.query.shape[1]
    return Results(out.swapaxes(1, 2)[:, :count], lse[..., :count])


def splash_backward(
    given: Inputs, made: Results, grad: Array, *, scoring: Scoring, interpret: bool = False
) -> Gradients:
    """Returns the results of `reference.backward`."""
    run, length = _splash(given, scoring, save_residuals=False, interpret=interpret)
    return _pull(run, length, given, made.out, made.lse, grad, by_head=True)


def _pull(
    run: Callable, length: int, given: Inputs, out: Array, lse: Array, grad: Array, by_head=False
) -> Gradients:
    """Returns the gradients of the inputs, by the residuals that an earlier forward pass saved.

    The forward pass that is traced here has no use once its residuals are replaced, and goes.
    """
    made, pull = jax.vjp(run, *(_pad(x, length) for x in given[:3]))
    turn = (lambda x: x.swapaxes(1, 2)) if by_head else (lambda x: x)
    out, grad, lse = turn(_pad(out, length)), turn(_pad(grad, length)), _pad(lse, length, axis=2)
    leaves, tree = jax.tree.flatten(pull)
    is_lse = functools.partial(_is_lse, shape=lse.shape)
    assert sum(leaf is made for leaf in leaves) == sum(map(is_lse, leaves)) == 1
    kept = [out if x is made else lse if is_lse(x) else x for x in leaves]
    dq, dk, dv = (x[:, : given.query.shape[1]] for x in jax.tree.unflatten(tree, kept)(grad))
    return dq, dk, dv, None


def _is_lse(leaf: Any, shape: tuple[int, ...]) -> bool:
    return leaf.shape == shape and leaf.dtype == jnp.float32


def _pad(x: Array, length: int, axis: int = 1) -> Array:
    """Returns `x` with zeros after its tokens, up to `length` of them."""
    padding = [(0, length - x.shape[axis] if each == axis else 0) for each in range(x.ndim)]
    return jnp.pad(x, padding)


def _decline_unless_causal(given: Inputs) -> None:
    (query, key, _, where, _), count = given, given.query.shape[1]
    if where.query_positions is not None or where.key_positions is not None:
        raise NotImplementedError("it is told no positions, and skips nothing by them")
    if where.key_segments is not None:
        raise NotImplementedError("it takes segments only of queries whose tokens the keys are of")
    if count != key.shape[1]:
        raise NotImplementedError(f"{query.shape[1]} queries are not {key.shape[1]} keys")


def _cudnn(given: Inputs, scoring: Scoring) -> tuple[Callable, int]:
    """Returns cuDNN's attention [B T N H], and an even length that it takes."""
    decline(given, scoring, (jnp.bfloat16, jnp.float16), 128)
    _decline_unless_causal(given)
    if NEED_DEVICES is None:
        raise NotImplementedError("this version of jax does not lower it inside of an op")
    if given.where.query_segments is not None:
        raise NotImplementedError("it takes no segments")
    _, length, _, width = given.query.shape
    if width % 8:
        raise NotImplementedError(f"heads of {width}: no multiple of 8")

    def run(query: Array, key: Array, value: Array) -> Array:
        try:
            return jax.nn.dot_product_attention(
                query, key, value, scale=scoring.scale, is_causal=True, implementation="cudnn",
                local_window_size=(scoring.window - 1, 0) if scoring.window else None,
            )  # fmt: skip
        except RuntimeError as error:  # of a jax without CUDA
            raise NotImplementedError(str(error)) from error

    return run, length + length % 2


def _splash(
    given: Inputs, scoring: Scoring, *, save_residuals: bool, interpret: bool
) -> tuple[Callable, int]:
    """Returns splash attention [B T N H], and a length of equal blocks that it takes."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, count, heads, width = given.query.shape
    decline(given, scoring, (jnp.float32, jnp.bfloat16), width)
    _decline_unless_causal(given)
    block = even(count, MOST, LANES)
    length = -(-count // block) * block
    # One backward kernel instead of two computes the scores once, but writes the gradients of
    # queries for each block of keys, and visits masked blocks.
    is_fused = not scoring.window and length <= FUSED * block
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=None if is_fused else block, block_kv_dq=None if is_fused else block,
        use_fused_bwd_kernel=is_fused,
    )  # fmt: skip
    seen = masks.CausalMask((length, length))
    if scoring.window:
        seen = masks.LocalMask((length, length), (scoring.window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([seen] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        save_residuals=save_residuals, interpret=interpret,
    )  # fmt: skip
    segments = given.where.query_segments
    if segments is not None:
        segments = _pad(segments.astype(jnp.int32), length)
        segments = splash.SegmentIds(q=segments, kv=segments)

    def run(query: Array, key: Array, value: Array) -> Any:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        return jax.vmap(kernel)((query * scoring.scale).astype(query.dtype), key, value, segments)

    return run, length
