"""Tiny models, and what it means for two of their results to be equal."""

import jax.numpy as jnp
import numpy as np

from recursia import kv as kv_source
from recursia.architecture import Model
from recursia.depth.expert_choice import ExpertChoice
from recursia.depth.fixed import Fixed
from recursia.embeddings.table import Table
from recursia.laws.numbers import draw, error, forward, gradient, is_equal, loss, tol
from tests.helpers.blocks import published

__all__ = ["draw", "error", "forward", "gradient", "is_equal", "loss", "tol"]

VOCAB, BATCH, LENGTH = 32, 2, 12
BLOCK = published("llama", embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)
POLICIES = {"fixed": Fixed, "expert_choice": ExpertChoice}


def keys_plan(name):
    """Returns the plan of a name in `points.PLANS`, or of a table."""
    is_replay = isinstance(name, str) and name.endswith(" replayed")
    reads = "queries_keys" if is_replay else "keys_values"
    return kv_source.Plan(name.removesuffix(" replayed") if is_replay else name, reads=reads)


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
        kv=keys_plan(kv),
        embed=Table(is_tied=is_tied),
        vocab_size=VOCAB,
        dtype=dtype,
    )


def normal(*shape, seed=0):
    """Returns normal noise that depends on the shape and the seed."""
    noise = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(noise, jnp.float32)


def text(seed: int = 0, length: int = LENGTH, batch: int = BATCH):
    """Returns random tokens."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (batch, length))
    return jnp.asarray(tokens, jnp.int32)


def assert_close(ours, theirs, n: int = 64):
    """Asserts that two trees differ by float32 rounding of sums of `n` terms."""
    assert error(ours, theirs) <= tol(jnp.float32, n)


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
