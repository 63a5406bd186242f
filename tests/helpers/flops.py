"""What a program multiplies, counted, against the closed forms."""

import functools

import jax
import jax.numpy as jnp

from recursia import accounting, kv, model, params
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.depth import fixed
from recursia.embeddings.table import Table
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery
from recursia.sharing.remat import KEEP
from recursia.traced_flops import count_flops

BLOCK = PreNorm(8, GroupedQuery(num_heads=4, num_kv_heads=2, head_dim=6), SwiGLU(12))
BATCH, VOCAB = 2, 11


def tiny(depth=None, sharing="cycle", num_layers=6, kv_sharing="own", is_tied=True, **options):
    depth = depth or fixed.Fixed(3)
    return Model(
        num_layers,
        BLOCK,
        depth,
        sharing=sharing,
        kv=kv.Plan(kv_sharing),
        embed=Table(is_tied=is_tied),
        vocab_size=VOCAB,
        **options,
    )


def loss(weights, tokens, model_config, remat):
    out = model.apply(weights, tokens, model_config, mode="train", step=jnp.int32(0), remat=remat)
    logits = model.logits(weights, out.hidden, model_config)
    return jax.nn.logsumexp(logits, -1).mean() + sum(out.aux.losses.values())


def traced(transform, model_config, seq_len, remat=KEEP):
    """Returns the FLOPs of a batch in `transform(loss)`, by walking its program."""
    weights = params.abstract(model.specs(model_config))
    tokens = jax.ShapeDtypeStruct((BATCH, seq_len), jnp.int32)
    function = transform(functools.partial(loss, model_config=model_config, remat=remat))
    return count_flops(jax.make_jaxpr(function)(weights, tokens))


def assert_exact(model_config, seq_len=13, remat=KEEP):
    """Asserts that closed forms equal the program's count, forward and with the backward pass."""
    forward = traced(lambda f: f, model_config, seq_len)
    assert BATCH * accounting.forward_flops(model_config, seq_len) == forward
    both = traced(jax.value_and_grad, model_config, seq_len, remat)
    assert BATCH * accounting.executed_training_flops(model_config, seq_len, remat) == both
    assert BATCH * accounting.training_flops(model_config, seq_len) == 3 * forward < both
