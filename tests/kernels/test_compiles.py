"""Every op, forward and backward, compiles for each generation of the hardware."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.grouped_matmul import MATMUL, OUTER, Rows
from recursia.kernels.routed_attention import BACKWARD, FORWARD
from recursia.kernels.routed_attention.where import Inputs, Results, Scoring, Where
from tests.helpers.kernels import GPUS, TPUS, compile_for

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
