"""Every op compiles to a kernel for each generation of the hardware, or says why it does not."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.grouped_matmul import (
    MATMUL,
    OUTER,
    SUM,
    Rows,
    combine_matmul,
    dispatch_matmul,
    group_choices,
)
from recursia.kernels.routed_attention import BACKWARD, FORWARD
from recursia.kernels.routed_attention.where import Inputs, Results, Scoring, Where
from recursia.preflight import hlo
from tests.helpers.kernels import GPUS, TPUS, compile_for, told
from tests.helpers.refusals import refused

SHAPE = jax.ShapeDtypeStruct
WIDTHS, DTYPES = (64, 128, 256), ("bfloat16", "float32")
KERNELS = "tpu_custom_call", "mosaic_gpu", "__cudnn$fmha"


def attention(width, dtype):
    """Yields ops and their arguments: of chosen tokens over all keys, and over their own."""
    query, lse = SHAPE((1, 682, 3, width), dtype), SHAPE((1, 3, 682), jnp.float32)
    for length, groups, where in ((1024, 1, Where(SHAPE((1, 682), jnp.int32))), (682, 3, Where())):
        key = SHAPE((1, length, groups, width), dtype)
        given, made = Inputs(query, key, key, where), Results(query, lse)
        yield FORWARD, (given,), {"scoring": Scoring(1.0)}
        yield BACKWARD, (given, made, query), {"scoring": Scoring(1.0)}


def grouped(width, dtype):
    """Yields products of many groups of uneven sizes, and of rows too wide for one block."""
    for count, groups, inner in ((2004, 129, 412), (1100, 4, 4096)):
        sizes, rows = SHAPE((groups,), jnp.int32), Rows(SHAPE((count, inner), dtype))
        if groups > 100:  # that tokens choose
            rows = Rows(SHAPE((count // 4, inner), dtype), SHAPE((count,), jnp.int32))
        back, bank = Rows(SHAPE((count, width), dtype)), SHAPE((groups, inner, width), dtype)
        yield MATMUL, (rows, bank, sizes), {}
        yield MATMUL, (back, bank, sizes), {"contracted": 2}
        yield OUTER, (rows, back, sizes), {}
        yield SUM, (Rows(SHAPE((count, 1), dtype)), back, sizes), {}


def marks(machine, width, dtype):
    if machine in GPUS:
        return pytest.mark.gpu_compile
    if (machine, width, dtype) == (TPUS[0], 64, "bfloat16"):
        return ()
    # Every machine and every width once, and both dtypes.
    places = {TPUS.index(machine), WIDTHS.index(width), 2 - DTYPES.index(dtype)}
    return pytest.mark.slow if len(places) == 1 else pytest.mark.exhaustive


CASES = [
    pytest.param(machine, ops, width, dtype, marks=marks(machine, width, dtype))
    for machine in TPUS + GPUS for ops in (attention, grouped)
    for width in WIDTHS for dtype in DTYPES
]  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("machine, ops, width, dtype", CASES)
def test_every_op_compiles_to_a_kernel(machine, ops, width, dtype, caplog):
    listed = list(ops(width, dtype))
    flat, tree = jax.tree.flatten([arrays for _, arrays, _ in listed])

    def run(*flat):
        each = zip(listed, jax.tree.unflatten(tree, flat), strict=True)
        return [op(*arrays, **static) for (op, _, static), arrays in each]

    text = compile_for(machine, run, *flat).as_text()
    if machine in GPUS and ops is attention and dtype == "float32":
        assert "mosaic_gpu declines: it takes bfloat16" in caplog.text
    else:
        calls = sum(text.count(f'custom_call_target="{name}') for name in KERNELS)
        assert calls >= len(listed) and not caplog.records


ODD = 683  # of 2,048 tokens a third: no multiple of a block


@pytest.mark.parametrize(
    "machine, length, is_packed, window",
    [
        *(pytest.param(GPUS[0], length, False, window, marks=pytest.mark.gpu_compile)
          for length, window in ((2048, 0), (ODD, 0), (2048, 256))),
        (TPUS[0], ODD, True, 0),
        *(pytest.param(TPUS[0], *how, marks=pytest.mark.slow)
          for how in ((1024, False, 0), (ODD, False, 256))),
    ],
)  # fmt: skip
def test_a_librarys_backward_pass_reads_what_its_forward_pass_saved(
    machine, length, is_packed, window
):
    heads, rows = (15 if machine in GPUS else 6), (2, length)
    query, key = (SHAPE((*rows, n, 64), jnp.bfloat16) for n in (heads, heads // 3))
    lse = SHAPE((2, heads, length), jnp.float32)
    segments = SHAPE(rows, jnp.int32) if is_packed else None

    def run(query, key, value, segments, out, lse, grad):
        given = Inputs(query, key, value, Where(query_segments=segments))
        return BACKWARD(given, Results(out, lse), grad, scoring=Scoring(0.125, window))[:3]

    text = compile_for(machine, run, query, key, key, segments, query, lse, query).as_text()
    if machine in GPUS:
        assert text.count('"__cudnn$fmhaSoftmax"') == 0
        assert text.count('"__cudnn$fmhaSoftmaxBackward"') == 1
    else:
        # Of queries, and of keys; or one of both.
        assert text.count('custom_call_target="tpu_custom_call"') == (2 if window else 1)
        assert "splash_mha_dkv" in text and "splash_mha_fwd" not in text


@pytest.mark.gpu_compile
def test_a_norm_that_reads_summed_rows_has_no_copy_of_them():
    tokens, choices, width, hidden, groups = 4096, 16, 512, 128, 64

    def run(x, up, down, index, weights):
        chosen = group_choices(index, groups)
        hidden = jax.nn.relu(dispatch_matmul(x, up, chosen))
        y = (x + combine_matmul(hidden, down, chosen, weights)).astype(jnp.float32)
        return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)

    x, index = SHAPE((tokens, width), jnp.bfloat16), SHAPE((tokens, choices), jnp.int32)
    up, down = (SHAPE((groups, *n), jnp.bfloat16) for n in ((width, hidden), (hidden, width)))
    weights = SHAPE(index.shape, jnp.float32)
    made = hlo.parse(compile_for(GPUS[0], run, x, up, down, index, weights).as_text())
    each = [line for c in made.computations.values() for line in c.instructions.values()]
    written = [hlo.num_bytes(line.shape) for line in each if line.opcode == "fusion"]
    assert max(written) < tokens * choices * width * 2


def test_attention_says_what_its_backends_do_not_take():
    query, row = SHAPE((1, 130, 2, 64), jnp.float32), SHAPE((1, 130), jnp.int32)

    def found(platform, where=None, relative=None, **scoring):
        given = Inputs(query, query, query, where or Where(), relative)
        return told(FORWARD, platform, given, scoring=Scoring(1.0, **scoring))

    placed = "it is told no positions, and skips nothing by them"
    assert found("tpu", Where(row)) == {"splash": placed, "pallas_tpu": "runs"}
    of_others = Where(query_segments=row, key_segments=row)
    assert found("tpu", of_others)["splash"].startswith("it takes segments only of queries")
    for how in ({"where": Where(query_segments=row)}, {"window": 5}):
        assert found("tpu", **how) == {"splash": "runs"}
    assert found("tpu", Where(row), window=5)["pallas_tpu"] == "it has no window"
    assert found("cuda") == {
        "cudnn": "it takes bfloat16 and float16, not float32",
        "mosaic_gpu": "it takes bfloat16, not float32",
        "reference": "runs",
    }
    relative = SHAPE((1, 130, 2, 3), jnp.float32)
    for platform in ("tpu", "cuda"):
        assert {*found(platform, relative=relative).values()} == {
            "it adds no relative scores", "runs"
        }  # fmt: skip
        assert {*found(platform, cap=2.0).values()} == {"it caps no scores", "runs"}
        half, wide = (SHAPE((1, 130, 2, n), jnp.bfloat16) for n in (64, 96))
        why = told(FORWARD, platform, Inputs(half, half, wide, Where()), scoring=Scoring(1.0))
        assert {*why.values()} == {"it takes values as wide as keys, not 96 and 64", "runs"}


@pytest.mark.parametrize("platform, name", [("tpu", "megablox"), ("cuda", "mosaic_gpu")])
def test_grouped_products_say_what_their_backends_do_not_take(platform, name):
    of = lambda dtype: (
        Rows(SHAPE((256, 412), dtype)), SHAPE((4, 412, 256), dtype), SHAPE((4,), jnp.int32)
    )  # fmt: skip
    assert told(MATMUL, platform, *of(jnp.bfloat16)) == {name: "runs"}
    assert "not float16" in told(MATMUL, platform, *of(jnp.float16))[name]


def test_a_gpu_without_the_kernels_instructions_takes_the_reference():
    given = (Rows(jnp.ones((4, 8))), jnp.ones((1, 8, 8)), jnp.array([4])), {}
    name, _, reasons = MATMUL.choose(*given, "auto", "cuda", "NVIDIA B200")
    assert name == "reference" and "H100" in (why := reasons["mosaic_gpu"])
    assert "not on NVIDIA B200" in why
    with refused(NotImplementedError, "not on NVIDIA A100-SXM4-80GB"):
        MATMUL.choose(*given, "mosaic_gpu", "cuda", "NVIDIA A100-SXM4-80GB")
