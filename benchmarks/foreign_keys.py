r"""Memory of attention over keys of another recursion: our kernels, and libraries told a mask.

Splash attention (TPU) and cuDNN's (NVIDIA) can be told a mask that is known only as the program
runs: they then keep the whole matrix. Splash skips what is masked block by block, cuDNN nothing. No
accelerator is needed: programs are compiled for one, forward and backward (the extras `tpu` and
`cuda`), and the compiler's numbers are exact for one version of XLA.

  python benchmarks/foreign_keys.py --out=benchmarks/results/foreign_keys.json
"""

import argparse
import functools
import json
import pathlib
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

from recursia import topology
from recursia.kernels.routed_attention import routed_attention
from recursia.preflight import hlo, traffic

BLOCK = 512
HEADS, KEY_HEADS, WIDTH = 15, 5, 64
# Rows, chosen tokens of each, and its keys: mor:360m, and one long row.
SHAPES = {"mor:360m": (32, 1365, 2048), "long": (1, 10922, 32768)}


def ours(backend: str, query: Any, key: Any, value: Any, positions: Any) -> Any:
    """Returns attention over all keys of a sequence by the kernel that is told positions."""
    return routed_attention(
        query, key, value, query_positions=positions, backend=backend, scale=1.0
    )


def cudnn(query: Any, key: Any, value: Any, positions: Any) -> Any:
    """Returns the same by cuDNN, of a mask made of positions; queries are padded to be even."""
    count = query.shape[1]
    query = jnp.pad(query, [(0, 0), (0, count % 2), (0, 0), (0, 0)])
    positions = jnp.pad(positions, [(0, 0), (0, count % 2)])
    seen = positions[:, None, :, None] >= jnp.arange(key.shape[1])
    out = jax.nn.dot_product_attention(
        query, key, value, mask=seen, scale=1.0, implementation="cudnn"
    )
    return out[:, :count]


def splash(query: Any, key: Any, value: Any, positions: Any) -> Any:
    """Returns the same by splash attention, of a mask made of positions; queries are padded."""
    count, size = query.shape[1], key.shape[1]
    length = -(-count // BLOCK) * BLOCK
    sizes = kernels.BlockSizes(**dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), BLOCK
    ))  # fmt: skip

    def row(query: Any, key: Any, value: Any, positions: Any) -> Any:
        padded = jnp.pad(query, [(0, length - count), (0, 0), (0, 0)]).swapaxes(0, 1)
        at = jnp.pad(positions, (0, length - count), constant_values=size)
        seen = at[:, None] >= jnp.arange(size)
        run = kernels.make_splash_mha(
            seen[None], block_sizes=sizes, head_shards=1, q_seq_shards=1
        )  # one mask for all heads
        # It makes an array of this flag, which ends every trace.
        run.fwd_mask_info = run.fwd_mask_info._replace(is_dynamic_mask=True)
        return run(padded, key.swapaxes(0, 1), value.swapaxes(0, 1)).swapaxes(0, 1)[:count]

    return jax.vmap(row)(query, key, value, positions)


MACHINES = {
    "v5e:2x2": {"ours": functools.partial(ours, "pallas_tpu"), "library": splash},
    "h100:1": {"ours": functools.partial(ours, "mosaic_gpu"), "library": cudnn},
}
CALLS = "tpu_custom_call", "mosaic_gpu", "__cudnn$fmha"


def compiled(machine: str, attention: Any, rows: int, count: int, size: int) -> dict[str, int]:
    """Returns bytes of one device for one call, forward and backward, and the kernels in it."""
    shape = jax.ShapeDtypeStruct
    query = shape((rows, count, HEADS, WIDTH), jnp.bfloat16)
    key = shape((rows, size, KEY_HEADS, WIDTH), jnp.bfloat16)
    positions = shape((rows, count), jnp.int32)

    def run(query: Any, key: Any, value: Any, positions: Any, grad: Any) -> Any:
        out, pull = jax.vjp(lambda *x: attention(*x, positions), query, key, value)
        return out, pull(grad)

    device = jax.sharding.SingleDeviceSharding(topology.devices(machine)[0])
    placed = jax.jit(run, in_shardings=device, out_shardings=device)
    made = placed.lower(query, key, key, positions, query).compile()
    text = made.as_text()
    return {
        "temporaries": made.memory_analysis().temp_size_in_bytes,
        "hbm_traffic": traffic.hbm_bytes(hlo.parse(text)),
        "kernels": sum(text.count(f'custom_call_target="{name}') for name in CALLS),
    }


def main() -> None:
    """Compiles both at every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "dtype": "bfloat16",
        "heads": [HEADS, KEY_HEADS, WIDTH],
        "rows": [],
    }
    for machine, attentions in MACHINES.items():
        for name, (rows, count, size) in SHAPES.items():
            row: dict[str, Any] = {"machine": machine, "shape": [rows, count, size], "name": name}
            for label, attention in attentions.items():
                row[label] = compiled(machine, attention, rows, count, size)
            print(row, flush=True)
            found["rows"].append(row)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
