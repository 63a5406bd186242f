"""Which implementation of attention a program is compiled to, and why not another."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.routed_attention import (
    BACKWARD,
    CAUSAL,
    CAUSAL_BACKWARD,
    FORWARD,
    routed_attention,
)
from recursia.kernels.routed_attention.where import Where
from tests.helpers.kernels import MACHINES, compile_for


def both_ways(query, key, value, grad, where):
    out, back = jax.vjp(lambda *x: routed_attention(*x, **where), query, key, value)
    return out, *back(grad)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_routed_subset_compiles_to_the_kernels(machine, caplog):
    query = jax.ShapeDtypeStruct((2, 682, 15, 64), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, 2048, 5, 64), jnp.bfloat16)
    places = lambda length: jax.ShapeDtypeStruct((2, length), jnp.int32)
    where = {"query_positions": places(682), "key_positions": places(2048)}
    text = compile_for(machine, both_ways, query, key, key, query, where).as_text()
    for name in ("routed_attention", "routed_attention_query", "routed_attention_key"):
        assert f'"{name}"' in text or f"/{name}" in text, name
    assert text.count('custom_call_target="tpu_custom_call"') in (0, 3)
    assert text.count("xla.gpu.triton") in (0, 3)
    assert "declines" not in caplog.text


@pytest.mark.gpu_compile
def test_plain_causal_attention_is_cudnns_and_runs_forward_once():
    query = jax.ShapeDtypeStruct((2, 2048, 15, 64), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, 2048, 5, 64), jnp.bfloat16)
    text = compile_for("h100:1", both_ways, query, key, key, query, {}).as_text()
    assert text.count('"__cudnn$fmhaSoftmax"') == 1
    assert text.count('"__cudnn$fmhaSoftmaxBackward"') == 1


def test_plain_causal_attention_is_splash_attentions_and_then_ours():
    query = jax.ShapeDtypeStruct((2, 1024, 6, 64), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, 1024, 2, 64), jnp.bfloat16)
    text = compile_for("v5e:2x2", both_ways, query, key, key, query, {}).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "splash" in text and "routed_attention_key" in text


def test_backends_say_what_they_do_not_take():
    query = jax.ShapeDtypeStruct((1, 130, 2, 64), jnp.float32)
    row = jax.ShapeDtypeStruct((1, 130), jnp.int32)
    told = lambda op, where, platform: op.explain(
        query, query, query, where, platform=platform, scale=1.0
    )
    assert told(FORWARD, Where(row), "tpu") == {
        "pallas_tpu": "accepts",
        "splash": "it is told no positions or segments, and skips nothing by them",
    }
    plain = told(CAUSAL, Where(), "tpu") | told(CAUSAL, Where(), "cuda")
    assert plain == {
        "splash": "130 tokens are no multiple of 128",
        "cudnn": "it takes bfloat16 and float16, not float32",
        "pallas_tpu": "accepts",
        "pallas_triton": "accepts",
    }
    relative = jax.ShapeDtypeStruct((1, 130, 2, 3), jnp.float32)
    for op in (FORWARD, CAUSAL):
        for platform in ("tpu", "cuda"):
            told = op.explain(query, query, query, Where(), relative, platform=platform, scale=1.0)
            assert set(told.values()) == {"it adds no relative scores"}


def test_named_libraries_serve_both_directions():
    for forward, backward in ((FORWARD, BACKWARD), (CAUSAL, CAUSAL_BACKWARD)):
        names = lambda op: {(each.name, each.platform) for each in op.implementations}
        assert names(forward) == names(backward)
