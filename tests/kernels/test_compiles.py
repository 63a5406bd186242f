"""Every op of a TPU, forward and backward, compiles for each generation of the hardware."""

import jax
import jax.numpy as jnp
import pytest

from recursia.kernels.grouped_matmul import MATMUL, OUTER, Rows
from recursia.kernels.routed_attention import BACKWARD, FORWARD
from recursia.kernels.routed_attention.where import Inputs, Results, Scoring, Where
from tests.helpers.kernels import TPUS, compile_for

SHAPE = jax.ShapeDtypeStruct
WIDTHS, DTYPES = (64, 128, 256), ("bfloat16", "float32")
SLOW = pytest.mark.slow


def attention(width, dtype):
    """Yields ops and their arguments: of chosen tokens over all keys, and over their own."""
    query, lse = SHAPE((1, 682, 3, width), dtype), SHAPE((1, 3, 682), jnp.float32)
    for length, groups, where in ((1024, 1, Where(SHAPE((1, 682), jnp.int32))), (682, 3, Where())):
        key = SHAPE((1, length, groups, width), dtype)
        given, made = Inputs(query, key, key, where), Results(query, lse)
        yield FORWARD, (given,), {"scoring": Scoring(1.0)}
        yield BACKWARD, (given, made, query), {"scoring": Scoring(1.0)}


def grouped(width, dtype):
    """Yields products of rows that many groups share, and of rows too wide for one block."""
    for count, groups, inner in ((2048, 129, 512), (1100, 4, 4096)):
        sizes, rows = SHAPE((groups,), jnp.int32), SHAPE((count, inner), dtype)
        back, bank = SHAPE((count, width), dtype), SHAPE((groups, inner, width), dtype)
        yield MATMUL, (Rows(rows), bank, sizes), {}
        yield MATMUL, (Rows(back), bank, sizes), {"contracted": 2}
        yield OUTER, (Rows(rows), Rows(back), sizes), {}


CASES = [
    pytest.param(machine, ops, width, dtype,
                 marks=() if (machine, width, dtype) == (TPUS[0], 64, "bfloat16") else SLOW)
    for machine in TPUS for ops in (attention, grouped) for width in WIDTHS for dtype in DTYPES
]  # fmt: skip


@pytest.mark.parametrize("machine, ops, width, dtype", CASES)
def test_every_op_compiles_to_a_kernel(machine, ops, width, dtype, caplog):
    listed = list(ops(width, dtype))
    flat, tree = jax.tree.flatten([arrays for _, arrays, _ in listed])

    def run(*flat):
        each = zip(listed, jax.tree.unflatten(tree, flat), strict=True)
        return [op(*arrays, **static) for (op, _, static), arrays in each]

    text = compile_for(machine, run, *flat).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= len(listed)
    assert not caplog.records
