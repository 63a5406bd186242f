"""Closed forms of FLOPs against the exact count of the traced program."""

import functools

import jax
import jax.numpy as jnp

from recursia import accounting, model, params
from recursia.sharing.remat import KEEP

BATCH = 2


def loss(weights, tokens, config, remat=KEEP):
    """Returns a number that every logit and every loss of the model moves."""
    out = model.apply(weights, tokens, config, mode="train", step=jnp.int32(0), remat=remat)
    logits = model.logits(weights, out.hidden, config)
    return jax.nn.logsumexp(logits, -1).mean() + sum(out.aux.losses.values())


def traced(transform, config, seq_len, remat=KEEP):
    """Returns the FLOPs of a batch in `transform(loss)`, by walking its program."""
    weights = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, seq_len), jnp.int32)
    function = transform(functools.partial(loss, config=config, remat=remat))
    return accounting.count_flops(jax.make_jaxpr(function)(weights, tokens))


def assert_exact(config, seq_len=13, remat=KEEP):
    """Asserts that closed forms equal the program's count, forward and with the backward pass."""
    forward = traced(lambda f: f, config, seq_len)
    assert BATCH * accounting.forward_flops(config, seq_len) == forward
    both = traced(jax.value_and_grad, config, seq_len, remat)
    assert BATCH * accounting.executed_training_flops(config, seq_len, remat) == both
    assert BATCH * accounting.training_flops(config, seq_len) == 3 * forward < both
