"""Causal attention of a row's own keys by kernels of libraries: cuDNN's and splash attention.

They compare places, not positions, and so take only keys of the same tokens in their order. Rows
are padded at the end to a length that they take, which no earlier query sees. A library's backward
pass reads the residuals of its own forward pass, which are the output and its log-sum-exp.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..dispatch import NEED_DEVICES
from .plan import even
from .where import Inputs, Results, Scoring, decline

LANES, MOST = 128, 512  # the least and the largest block of splash attention
FUSED = 4  # blocks of keys up to which splash's backward pass is one kernel
Library = tuple[Callable, int, Callable]  # attention, a length that it takes, and the layout


def forward(library: Callable, given: Inputs, *, scoring: Scoring, **how: Any) -> Results:
    """Returns the results of `reference.forward` by `cudnn` or `splash`."""
    run, length, turned = library(given, scoring, **how)
    out, pull = jax.vjp(run, *(_pad(x, length) for x in given[:3]))
    (lse,) = (leaf for leaf in jax.tree.leaves(pull) if _is_lse(leaf, given, length))
    count = given.query.shape[1]
    return Results(turned(out)[:, :count], lse[..., :count])


def backward(
    library: Callable, given: Inputs, made: Results, grad: Array, *, scoring: Scoring, **how: Any
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`, by the residuals that `forward` saved.

    The forward pass that is traced here has no use once its residuals are replaced, and goes.
    """
    run, length, turned = library(given, scoring, **how)
    traced, pull = jax.vjp(run, *(_pad(x, length) for x in given[:3]))
    out, grad = (turned(_pad(x, length)) for x in (made.out, grad))
    lse, (leaves, tree) = _pad(made.lse, length, axis=2), jax.tree.flatten(pull)
    are_lse = [_is_lse(leaf, given, length) for leaf in leaves]
    assert sum(leaf is traced for leaf in leaves) == sum(are_lse) == 1
    pairs = zip(leaves, are_lse, strict=True)
    kept = [out if leaf is traced else lse if is_lse else leaf for leaf, is_lse in pairs]
    dq, dk, dv = (x[:, : given.query.shape[1]] for x in jax.tree.unflatten(tree, kept)(grad))
    return dq, dk, dv, None


def _is_lse(leaf: Any, given: Inputs, length: int) -> bool:
    batch, _, heads, _ = given.query.shape
    return leaf.shape == (batch, heads, length) and leaf.dtype == jnp.float32


def _pad(x: Array, length: int, axis: int = 1) -> Array:
    """Returns `x` with zeros after its tokens, up to `length` of them."""
    padding = [(0, length - x.shape[axis] if each == axis else 0) for each in range(x.ndim)]
    return jnp.pad(x, padding)


def _decline_unless_causal(given: Inputs) -> None:
    query, key, _, where, _ = given
    if where.query_positions is not None or where.key_positions is not None:
        raise NotImplementedError("it is told no positions, and skips nothing by them")
    if where.key_segments is not None:
        raise NotImplementedError("it takes segments only of queries whose tokens the keys are of")
    if query.shape[1] != key.shape[1]:
        raise NotImplementedError(f"{query.shape[1]} queries are not {key.shape[1]} keys")


def cudnn(given: Inputs, scoring: Scoring) -> Library:
    """Returns cuDNN's attention, of [B T N H] to the same, and an even length that it takes."""
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

    return run, length + length % 2, lambda x: x


def splash(given: Inputs, scoring: Scoring, interpret: bool = False) -> Library:
    """Returns splash attention, of [B T N H] to [B N T H], and a length of equal blocks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
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
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=None if is_fused else block, block_kv_dq=None if is_fused else block,
        use_fused_bwd_kernel=is_fused,
    )  # fmt: skip
    seen = masks.CausalMask((length, length))
    if scoring.window:
        seen = masks.LocalMask((length, length), (scoring.window - 1, 0), 0)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip
    segments = given.where.query_segments
    if segments is not None:
        segments = _pad(segments.astype(jnp.int32), length)
        segments = kernels.SegmentIds(q=segments, kv=segments)

    def run(query: Array, key: Array, value: Array) -> Any:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        return jax.vmap(kernel)((query * scoring.scale).astype(query.dtype), key, value, segments)

    return run, length, lambda x: x.swapaxes(1, 2)
