"""Which implementation of attention a program is compiled to, and why not another."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.routed_attention import BACKWARD, FORWARD
from recursia.kernels.routed_attention.where import Inputs, Results, Scoring, Where
from tests.helpers.kernels import compile_for, told


def backward_alone(machine, length, heads, is_packed=False, window=0):
    """Returns the program of a backward pass alone, whose residuals another program saved."""
    query = jax.ShapeDtypeStruct((2, length, heads, 64), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, length, heads // 3, 64), jnp.bfloat16)
    logsum = jax.ShapeDtypeStruct((2, heads, length), jnp.float32)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32) if is_packed else None

    def run(query, key, value, segments, out, logsum, grad):
        given = Inputs(query, key, value, Where(query_segments=segments))
        return BACKWARD(given, Results(out, logsum), grad, scoring=Scoring(0.125, window))[:3]

    return compile_for(machine, run, query, key, key, segments, query, logsum, query).as_text()


ODD = 683  # of 2,048 tokens a third: no multiple of a block


@pytest.mark.gpu_compile
@pytest.mark.parametrize("length, window", [(2048, 0), (ODD, 0), (2048, 256)])
def test_cudnns_backward_pass_reads_what_its_forward_pass_saved(length, window):
    text = backward_alone("h100:1", length, 15, window=window)
    assert text.count('"__cudnn$fmhaSoftmax"') == 0
    assert text.count('"__cudnn$fmhaSoftmaxBackward"') == 1


@pytest.mark.few(1)
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

    def found(platform, where=None, relative=None, **scoring):
        given = Inputs(query, query, query, where or Where(), relative)
        return told(FORWARD, platform, given, scoring=Scoring(1.0, **scoring))

    placed = "it is told no positions, and skips nothing by them"
    assert found("tpu", Where(row)) == {"splash": placed, "pallas_tpu": "runs"}
    of_others = Where(query_segments=row, key_segments=row)
    assert found("tpu", of_others)["splash"].startswith("it takes segments only of queries")
    assert found("tpu", Where(query_segments=row)) == {"splash": "runs"}
    assert found("tpu", window=5) == {"splash": "runs"}
    assert found("tpu", Where(row), window=5)["pallas_tpu"] == "it has no window"
    assert found("cuda") == {
        "cudnn": "it takes bfloat16 and float16, not float32",
        "mosaic_gpu": "it takes bfloat16, not float32",
        "reference": "runs",
    }
    relative = jax.ShapeDtypeStruct((1, 130, 2, 3), jnp.float32)
    for platform in ("tpu", "cuda"):
        why = {*found(platform, relative=relative).values()}
        assert why == {"it adds no relative scores", "runs"}
        assert {*found(platform, cap=2.0).values()} == {"it caps no scores", "runs"}
