"""Tiny models, and what it means for two of their results to be equal."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recursia import kv as kv_source
from recursia import model
from recursia.architecture import Model
from recursia.depth.expert_choice import ExpertChoice
from recursia.depth.fixed import Fixed
from recursia.layers import embedding
from recursia.sharing.remat import KEEP
from tests.helpers.blocks import published

VOCAB, BATCH, LENGTH = 32, 2, 12
BLOCK = published("llama", embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)
POLICIES = {"fixed": Fixed, "expert_choice": ExpertChoice}


def tiny(
    depth="fixed",
    sharing_="cycle",
    recursions=3,
    blocks=2,
    varies=(),
    kv="own",
    is_tied=True,
    dtype="float32",
    **options,
) -> Model:
    """Returns a model of `blocks` blocks walked `recursions` times; options are the policy's."""
    ends = 2 if sharing_.startswith("middle_") else 0
    return Model(
        recursions * blocks + ends,
        BLOCK,
        POLICIES[depth](recursions, **options),
        sharing=sharing_,
        varies=varies,
        kv=kv_source.Plan(kv),
        embed=embedding.Embedding(is_tied=is_tied),
        vocab_size=VOCAB,
        dtype=dtype,
    )


def draw(config: Model, seed: int = 0):
    """Returns parameters large enough that every one of them matters, norms included."""

    def leaf(path, spec):
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        noise = np.random.default_rng([seed, name]).normal(size=spec.shape)
        return jnp.asarray(0.3 * noise if spec.is_decayed else 1 + 0.2 * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.specs(config))


def normal(*shape, seed=0):
    """Returns normal noise that depends on the shape and the seed."""
    noise = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(noise, jnp.float32)


def text(seed: int = 0, length: int = LENGTH, batch: int = BATCH):
    """Returns random tokens."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (batch, length))
    return jnp.asarray(tokens, jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "mode", "remat"))
def forward(
    params, tokens, config, mode="eval", positions=None, segment_ids=None, step=None, remat=KEEP
):
    """Returns logits and what the depth policy reports."""
    where = {"positions": positions, "segment_ids": segment_ids}
    out = model.apply(params, tokens, config, **where, mode=mode, step=step, remat=remat)
    return model.logits(params, out.hidden, config), out.aux


def loss(params, tokens, config, mode="train", step=None, remat=KEEP):
    """Returns nats per next token, with the policy's own losses."""
    logits, aux = forward(params, tokens, config, mode, step=step, remat=remat)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return nats.mean() + sum(aux.losses.values())


gradient = jax.jit(jax.value_and_grad(loss), static_argnames=("config", "mode", "remat"))


def tol(dtype, n: int, c: float = 8.0) -> float:
    """Returns the relative error that a sum of `n` terms of this dtype may make."""
    return c * float(jnp.finfo(dtype).eps) * math.sqrt(n)


def error(ours, theirs) -> float:
    """Returns the largest difference of two trees, each leaf's over its largest entry."""

    def leaf(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        return np.abs(a - b).max() / (np.abs(b).max() + 1e-30)

    return float(np.max(jax.tree.leaves(jax.tree.map(leaf, ours, theirs))))


def assert_close(ours, theirs, n: int = 64):
    """Asserts that two trees differ by float32 rounding of sums of `n` terms."""
    assert error(ours, theirs) <= tol(jnp.float32, n)


def is_equal(ours, theirs) -> bool:
    """Returns whether two trees are equal bit for bit."""
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def counted(jaxpr, weigh, is_unrolled=False) -> int:
    """Returns the sum of `weigh(equation)` over a jaxpr and all inside it.

    With `is_unrolled`, the inside of a scan counts once for each of its steps. Of branches, such as
    those for different machines, the heaviest counts.
    """
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if is_unrolled else 1
        total += weigh(equation)
        for value in equation.params.values():
            inner = value if isinstance(value, tuple | list) else (value,)
            jaxprs = [j for v in inner if hasattr(j := getattr(v, "jaxpr", v), "eqns")]
            counts = [counted(jaxpr, weigh, is_unrolled) for jaxpr in jaxprs]
            total += times * (max if equation.primitive.name == "cond" else sum)(counts or [0])
    return total
