"""Models with random parameters that all matter, and what it means for two results to be equal."""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, DTypeLike, Float

from recursia import model
from recursia.architecture import Model
from recursia.depth.policy import Aux, Mode
from recursia.params import Params
from recursia.sharing.remat import KEEP, Remat


def draw(config: Model, seed: int = 0, std: float = 0.3) -> Params:
    """Returns parameters large enough that every one of them matters, norms included.

    Args:
      config: the model.
      seed: of the noise.
      std: standard deviation of matrices.
    """

    def leaf(path: Any, spec: Any) -> Array:
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        noise = np.random.default_rng([seed, name]).normal(size=spec.shape)
        return jnp.asarray(std * noise if spec.is_decayed else 1 + 0.2 * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.specs(config))


@functools.partial(jax.jit, static_argnames=("config", "mode", "remat"))
def forward(
    params: Params,
    tokens: Array,
    config: Model,
    mode: Mode = "eval",
    positions: Array | None = None,
    segment_ids: Array | None = None,
    step: Array | None = None,
    remat: Remat = KEEP,
) -> tuple[Float[Array, "B T V"], Aux]:
    """Returns logits and what the depth policy reports."""
    out = model.apply(
        params,
        tokens,
        config,
        positions=positions,
        segment_ids=segment_ids,
        mode=mode,
        step=step,
        remat=remat,
    )
    return model.logits(params, out.hidden, config), out.aux


def loss(
    params: Params,
    tokens: Array,
    config: Model,
    mode: Mode = "train",
    step: Array | None = None,
    remat: Remat = KEEP,
) -> Float[Array, ""]:
    """Returns nats per next token, with the policy's own losses."""
    logits, aux = forward(params, tokens, config, mode, step=step, remat=remat)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return nats.mean() + sum(aux.losses.values())


gradient = jax.jit(jax.value_and_grad(loss), static_argnames=("config", "mode", "remat"))


def tol(dtype: DTypeLike, n: int, c: int | float = 8) -> float:
    """Returns the relative error that a sum of `n` terms of this dtype may make."""
    return c * float(jnp.finfo(dtype).eps) * math.sqrt(n)


def error(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of two trees, each leaf's over its largest entry."""

    def leaf(a: Any, b: Any) -> Any:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        return np.abs(a - b).max() / (np.abs(b).max() + 1e-30)

    return float(np.max(jax.tree.leaves(jax.tree.map(leaf, ours, theirs))))


def is_equal(ours: Any, theirs: Any) -> bool:
    """Returns whether two trees are equal bit for bit."""
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
