"""Which implementation of attention a program is compiled to, and why not another."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.routed_attention import (
    BACKWARD,
    CAUSAL,
    CAUSAL_BACKWARD,
    FORWARD,
    WINDOWED_BACKWARD,
    routed_attention,
)
from recursia.kernels.routed_attention.where import Where
from tests.helpers.kernels import MACHINES, compile_for


def both_ways(query, key, value, grad, where):
    out, back = jax.vjp(lambda *x: routed_attention(*x, **where), query, key, value)
    return out, *back(grad)


WIDTHS = [pytest.param("h100:1", width, marks=pytest.mark.gpu_compile) for width in (64, 128, 256)]
TPU_WIDTHS = [pytest.param(*each.values, 64, marks=each.marks) for each in MACHINES[1:-1]]


@pytest.mark.parametrize("machine, width", [(MACHINES[0], 64), *TPU_WIDTHS, *WIDTHS])
def test_a_routed_subset_compiles_to_the_kernels(machine, width, caplog):
    query = jax.ShapeDtypeStruct((2, 682, 15, width), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, 2048, 5, width), jnp.bfloat16)
    places = lambda length: jax.ShapeDtypeStruct((2, length), jnp.int32)
    where = {"query_positions": places(682), "key_positions": places(2048)}
    text = compile_for(machine, both_ways, query, key, key, query, where).as_text()
    for name in ("routed_attention", "routed_attention_query", "routed_attention_key"):
        assert machine == "h100:1" or f'"{name}"' in text or f"/{name}" in text, name
    assert text.count('custom_call_target="tpu_custom_call"') in (0, 3)
    # Of wide heads the gradients of keys and of values are two kernels.
    kernels = (4 if width > 128 else 3) if machine == "h100:1" else 0
    assert text.count('custom_call_target="mosaic_gpu') == kernels
    assert "declines" not in caplog.text


def backward_alone(machine, length, heads, is_packed=False, window=0):
    """Returns the program of a backward pass alone, whose residuals another program saved."""
    query = jax.ShapeDtypeStruct((2, length, heads, 64), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, length, heads // 3, 64), jnp.bfloat16)
    logsum = jax.ShapeDtypeStruct((2, heads, length), jnp.float32)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32) if is_packed else None
    op, kept = (WINDOWED_BACKWARD, {"window": window}) if window else (CAUSAL_BACKWARD, {})

    def run(query, key, value, segments, *saved):
        where = Where(query_segments=segments)
        return op(query, key, value, where, None, *saved, scale=0.125, **kept)[:3]

    return compile_for(machine, run, query, key, key, segments, query, logsum, query).as_text()


ODD = 683  # of 2,048 tokens a third: no multiple of a block


@pytest.mark.gpu_compile
@pytest.mark.parametrize("length, window", [(2048, 0), (ODD, 0), (2048, 256)])
def test_cudnns_backward_pass_reads_what_its_forward_pass_saved(length, window):
    text = backward_alone("h100:1", length, 15, window=window)
    assert text.count('"__cudnn$fmhaSoftmax"') == 0
    assert text.count('"__cudnn$fmhaSoftmaxBackward"') == 1


@pytest.mark.parametrize(
    "length, is_packed, window", [(1024, False, 0), (ODD, True, 0), (ODD, False, 256)]
)
def test_splash_attentions_backward_pass_reads_what_its_forward_pass_saved(
    length, is_packed, window
):
    text = backward_alone("v5e:2x2", length, 6, is_packed, window)
    # Of queries, and of keys; or one of both.
    assert text.count('custom_call_target="tpu_custom_call"') == (2 if window else 1)
    assert "splash_mha_dkv" in text and "splash_mha_fwd" not in text


def test_backends_say_what_they_do_not_take():
    query = jax.ShapeDtypeStruct((1, 130, 2, 64), jnp.float32)
    row = jax.ShapeDtypeStruct((1, 130), jnp.int32)
    told = lambda op, where, platform: op.explain(
        query, query, query, where, platform=platform, scale=1.0
    )
    assert told(FORWARD, Where(row), "tpu") == {
        "pallas_tpu": "accepts",
        "splash": "it is told no positions, and skips nothing by them",
    }
    of_others = Where(query_segments=row, key_segments=row)
    assert told(FORWARD, of_others, "tpu")["splash"].startswith("it takes segments only of queries")
    packed = Where(query_segments=row)
    assert told(CAUSAL, packed, "tpu")["splash"] == "accepts"
    assert told(CAUSAL, packed, "cuda")["cudnn"] == "it takes no segments"
    plain = told(CAUSAL, Where(), "tpu") | told(CAUSAL, Where(), "cuda")
    assert plain == {
        "splash": "accepts",
        "cudnn": "it takes bfloat16 and float16, not float32",
        "pallas_tpu": "accepts",
        "mosaic_gpu": "tensor cores multiply bfloat16, not float32",
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
