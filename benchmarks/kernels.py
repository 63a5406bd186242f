r"""Times of kernels: each op, its reference, implementations of libraries, and a lower bound.

The lower bound is bytes over the measured bandwidth of a copy, or FLOPs over the measured rate of a
matrix product, whichever is longer. Shapes are those of published models in bfloat16; on a CPU they
are divided by --cut, and only references run. Candidates take turns; times are medians.

  python benchmarks/kernels.py --out=benchmarks/results/kernels_h100.json
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recursia.kernels.grouped_matmul import grouped_matmul
from recursia.kernels.routed_attention import routed_attention

# Sequences, tokens, width, query and key heads, width of a head.
ROUTED = {
    "mor:360m T=2048": (32, 2048, 960, 15, 5, 64),
    "mor:360m T=8192": (8, 8192, 960, 15, 5, 64),
    "mor:1.7b T=2048": (16, 2048, 2048, 32, 32, 64),
    "mor:1.7b T=8192": (4, 8192, 2048, 32, 32, 64),
}
# Tokens, experts, experts of a token, width, width of an expert.
GROUPED = {
    "moeut:244m up": (16384, 387, 16, 1024, 128),
    "moeut:244m down": (16384, 387, 16, 128, 1024),
    "moeut:244m values": (16384, 40, 8, 1024, 128),
}
CAPACITIES = (2 / 3, 1 / 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
      op: its name.
      shape: name of the shape.
      candidates: implementations as functions of `arrays`; the first is that of backend "auto".
      arrays: inputs of the candidates.
      bytes: least number of bytes that the op moves.
      flops: of the useful matrix products.
    """

    op: str
    shape: str
    candidates: dict[str, Callable[..., Any]]
    arrays: tuple[Any, ...]
    bytes: float = 0.0
    flops: float = 0.0


def draw(seed: int, shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def both_ways(f: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns the gradient function of the first `count` arguments, with the forward pass."""
    total = lambda *arrays: f(*arrays).astype(jnp.float32).sum()
    return jax.grad(total, argnums=tuple(range(count)))


def places(batch: int, length: int, count: int) -> jax.Array:
    return jnp.sort(jax.lax.top_k(draw(3, (batch, length), jnp.float32), count)[1])


def attention_cases(name: str, cut: int) -> list[Case]:
    batch, length, _, heads, groups, width = ROUTED[name]
    batch, length = max(batch // cut, 1), length // cut
    key, value = (draw(seed, (batch, length, groups, width)) for seed in (1, 2))
    flops = lambda area: 4.0 * batch * heads * width * area
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    library = {"jax.nn": plain}
    if jax.default_backend() == "gpu":
        library = {"cudnn": functools.partial(plain, implementation="cudnn")}
    cases, query = [], draw(0, (batch, length, heads, width))

    def add(what: str, candidates: dict[str, Any], arrays: tuple[Any, ...], area: float) -> None:
        cases.append(Case("routed_attention", f"{name} {what}", candidates, arrays, 0, flops(area)))
        back = {k: both_ways(f, 3) for k, f in candidates.items()}
        back = Case("routed_attention both ways", f"{name} {what}", back, arrays, 0,
                    3.5 * flops(area))  # fmt: skip
        cases.append(back)

    ours = {"auto": routed_attention}
    if jax.default_backend() == "gpu":
        ours["pallas_triton"] = functools.partial(routed_attention, backend="pallas_triton")
    add("causal", {**ours, **library}, (query, key, value), length * (length + 1) / 2)
    for capacity in CAPACITIES:
        count = int(capacity * length)
        index = places(batch, length, count)
        own = lambda q, k, v, at: routed_attention(q, k, v, query_positions=at, key_positions=at)
        arrays = query[:, :count], key[:, :count], value[:, :count], index
        add(f"{capacity:.2f} own", {"auto": own}, arrays, count * (count + 1) / 2)
        rest = lambda q, k, v, at: routed_attention(q, k, v, query_positions=at)
        area = float((index + 1).sum()) / batch
        add(f"{capacity:.2f} of all", {"auto": rest}, (query[:, :count], key, value, index), area)
    return cases


def expert_cases(name: str, cut: int) -> list[Case]:
    tokens, experts, taken, width, inner = GROUPED[name]
    tokens, experts = tokens // cut**2, max(experts // cut, 2)
    count = tokens * taken
    chosen = np.random.default_rng(0).integers(0, experts, count)
    sizes = jnp.asarray(np.bincount(chosen, minlength=experts), jnp.int32)
    rows, bank = draw(0, (count, width)), draw(1, (experts, width, inner))
    candidates = {
        "auto": grouped_matmul,
        "reference": functools.partial(grouped_matmul, backend="reference"),
        "ragged_dot": jax.lax.ragged_dot,
    }
    flops = 2.0 * count * width * inner
    moved = 2.0 * (rows.size + bank.size + count * inner)
    arrays = rows, bank, sizes
    back = {k: both_ways(f, 2) for k, f in candidates.items()}
    return [
        Case("grouped_matmul", name, candidates, arrays, moved, flops),
        Case("grouped_matmul both ways", name, back, arrays, 3 * moved, 3 * flops),
    ]


def seconds(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median time of each candidate; candidates take turns."""
    calls = {}
    for name, f in candidates.items():
        jax.block_until_ready(f())
        start = time.perf_counter()
        jax.block_until_ready(f())
        # As many calls as take about 20 ms, so that launching them is hidden.
        calls[name] = max(1, int(0.02 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, f in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready([f() for _ in range(calls[name])])
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(each) for name, each in times.items()}


def machine(cut: int, repeats: int) -> dict[str, float]:
    """Returns the bytes per second of a copy, and FLOPs per second of a bfloat16 product."""
    side = 8192 // cut
    x, many = draw(0, (side, side)), draw(0, (16 * side, side))
    copy, product = jax.jit(lambda x: -x), jax.jit(lambda x: x @ x)
    took = seconds({"copy": lambda: copy(many), "product": lambda: product(x)}, repeats)
    return {
        "bytes_per_second": 4.0 * many.size / took["copy"],
        "flops_per_second": 2.0 * side**3 / took["product"],
    }


def measure(case: Case, rates: dict[str, float], repeats: int) -> dict[str, Any]:
    calls = {k: functools.partial(jax.jit(f), *case.arrays) for k, f in case.candidates.items()}
    took = seconds(calls, repeats)
    by_bytes = case.bytes / rates["bytes_per_second"]
    floor = max(by_bytes, case.flops / rates["flops_per_second"])
    row = {"op": case.op, "shape": case.shape, "seconds": took, "floor_seconds": floor,
           "of_floor": floor / took["auto"]}  # fmt: skip
    others = " ".join(f"{k} {v / took['auto']:.2f}x" for k, v in took.items() if k != "auto")
    print(f"{case.op:26} {case.shape:28} {1e6 * took['auto']:10.1f} us  "
          f"{100 * row['of_floor']:5.1f} % of floor  {others}", flush=True)  # fmt: skip
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description="times of kernels, references and libraries")
    parser.add_argument("--cut", type=int, help="divides lengths; 1, on a CPU 16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", default="", help="part of an op's name")
    parser.add_argument("--out", type=pathlib.Path, help="write the result here as JSON")
    options = parser.parse_args()
    cut = options.cut or (16 if jax.default_backend() == "cpu" else 1)
    cases = [(attention_cases, ROUTED), (expert_cases, GROUPED)]
    rates = machine(cut, options.repeats)
    rows = []
    for make, names in cases:
        for name in names:
            for case in make(name, cut):
                if options.only in case.op:
                    rows.append(measure(case, rates, options.repeats))
    result = {
        "command": " ".join(["python", *sys.argv]),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "dtype": "bfloat16",
        "lengths_divided_by": cut,
        **rates,
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
