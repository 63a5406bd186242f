"""What kernels are judged by: ops at shapes of published models, their rivals and their targets."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recursia.kernels.grouped_matmul import grouped_matmul
from recursia.kernels.routed_attention import routed_attention

# Sequences, tokens, query and key heads, width of a head.
ATTENTION = {
    "mor:360m T=2048": (32, 2048, 15, 5, 64),
    "mor:360m T=8192": (8, 8192, 15, 5, 64),
    "mor:1.7b T=2048": (16, 2048, 32, 32, 64),
}
CAPACITIES = (2 / 3, 1 / 3)
# Rows, groups, width, width of a group.
GROUPED = {
    "large": (65536, 8, 4096, 14336),
    "moeut:244m up": (262144, 387, 1024, 128),
    "moeut:244m down": (262144, 387, 128, 1024),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
      name: the op and the shape.
      candidates: implementations by name, as functions of `arrays`; "ours" is that of the model.
      arrays: inputs.
      reference: what `candidates` are checked against, in float32.
      part: the inputs that are checked, of all.
      count: arguments that a backward pass is of, the first; 0 is a forward pass.
      target: in words.
      judged: from the medians of the candidates and the device's rates, how far the target is
        reached: 1 and more is met.
    """

    name: str
    candidates: dict[str, Callable[..., Any]]
    arrays: tuple[Any, ...]
    reference: Callable[..., Any]
    part: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    target: str
    judged: Callable[[dict[str, float], dict[str, float]], float]
    count: int = 0


def draw(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def both_ways(case: Case, count: int) -> tuple[Case, Case]:
    """Returns the forward pass of a case, and the backward pass of its first arguments."""
    back = dataclasses.replace(case, name=f"{case.name} backward", count=count)
    return dataclasses.replace(case, name=f"{case.name} forward"), back


def first(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the first sequence: all of them in float32 would take too much memory."""
    return tuple(x[:1] for x in arrays)


def chosen(query: Any, key: Any, value: Any, index: Any, backend: str = "auto") -> Any:
    return routed_attention(query, key, value, query_positions=index, backend=backend)


attended = functools.partial(routed_attention, backend="reference")


def attention(cut: int) -> Iterator[Case]:
    """Yields causal attention, and attention of chosen tokens over own and foreign keys."""
    for name, (batch, length, heads, groups, width) in ATTENTION.items():
        batch, length = max(batch // cut, 1), length // cut
        query = draw(0, batch, length, heads, width)
        key, value = (draw(seed, batch, length, groups, width) for seed in (1, 2))
        plain = functools.partial(jax.nn.dot_product_attention, is_causal=True)
        library = {"xla": plain}
        if jax.default_backend() == "gpu":
            library = {"cudnn": functools.partial(plain, implementation="cudnn")}
        (rival,) = library
        as_fast = lambda limit, rival=rival: lambda took, rates: limit * took[rival] / took["ours"]
        causal = Case(
            f"{name} causal", {"ours": routed_attention, **library}, (query, key, value),
            attended, first, f"1.0 of the time of {rival}", as_fast(1.0),
        )  # fmt: skip
        yield from both_ways(causal, 3)
        for capacity in CAPACITIES:
            count = int(capacity * length)
            few = query[:, :count], key[:, :count], value[:, :count]
            own = Case(
                f"{name} own keys of {count}", {"ours": routed_attention, **library}, few,
                attended, first, f"1.1 of the time of {rival}, causal, of as many tokens",
                as_fast(1.1),
            )  # fmt: skip
            yield from both_ways(own, 3)
            index = jnp.sort(jax.lax.top_k(draw(3, batch, length, dtype=jnp.float32), count)[1])
            area = float((index + 1).sum()) / batch / (length * (length + 1) / 2)
            every = lambda q, k, v, at, query=query: routed_attention(query, k, v)
            foreign = Case(
                f"{name} foreign keys of {count}", {"ours": chosen, "all queries": every},
                (few[0], key, value, index),
                functools.partial(chosen, backend="reference"), first,
                f"1.3 of its share, {area:.3f}, of the time of all queries",
                lambda took, rates, area=area: 1.3 * area * took["all queries"] / took["ours"],
            )  # fmt: skip
            yield from both_ways(foreign, 3)


def experts(cut: int) -> Iterator[Case]:
    """Yields grouped matmuls, against XLA's and a dense product of the same FLOPs."""
    for name, (count, groups, width, inner) in GROUPED.items():
        count, groups = count // cut**2, max(groups // cut, 2)
        taken = np.random.default_rng(0).integers(0, groups, count)
        sizes = jnp.asarray(np.bincount(taken, minlength=groups), jnp.int32)
        rows, bank = draw(0, count, width), draw(1, groups, width, inner)
        flops, moved = 2.0 * count * width * inner, 2.0 * (rows.size + bank.size + count * inner)
        dense = lambda took, rates, f=flops: f / took["ours"] / rates["flops_per_second"] / 0.7
        floor = lambda took, rates, m=moved: m / took["ours"] / rates["bytes_per_second"] / 0.75
        is_large = name == "large"
        yield from both_ways(
            Case(
                f"grouped matmul {name}",
                {"ours": grouped_matmul, "ragged_dot": jax.lax.ragged_dot},
                (rows, bank, sizes),
                functools.partial(grouped_matmul, backend="reference"),
                lambda arrays: arrays,
                "70 % of the dense rate" if is_large else "75 % of the memory floor",
                dense if is_large else floor,
            ),
            2,
        )
