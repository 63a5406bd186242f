"""Seconds of a function on a device, by repeats in one program whose calls depend on each other.

Python's clock sees the launch of a program, which hides what takes microseconds. Here a program
calls the function `n` times in a loop; each call waits for the one before, and what two values of
`n` differ in is the calls alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LEAST = 0.02  # seconds between the shorter and the longer program


def repeated(f: Callable[..., Any], arrays: Any) -> Callable[[int], float]:
    """Returns the compiled function from a number of calls to their seconds, launch included."""

    def body(_: Any, state: Any) -> Any:
        # The barrier ties the next call to the results of this one, and hides that nothing changed.
        held, _ = state
        return jax.lax.optimization_barrier((held, f(*held)))

    def loop(count: int, held: Any) -> Any:
        made = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, *held))
        return jax.lax.fori_loop(0, count, body, (held, made))[1]

    run = jax.jit(loop)
    wait = lambda count: jax.block_until_ready(run(count, arrays))
    wait(1)

    def seconds(count: int) -> float:
        begun = time.perf_counter()
        wait(count)
        return time.perf_counter() - begun

    return seconds


def measure(
    candidates: dict[str, Callable[..., Any]], arrays: dict[str, Any], rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of a call of each candidate, round by round; candidates take turns.

    Args:
      candidates: functions by name.
      arrays: the arguments of each.
      rounds: turns of each.
    """
    programs = {name: repeated(f, arrays[name]) for name, f in candidates.items()}
    counts = {}
    for name, seconds in programs.items():
        count = 2
        while seconds(count) < LEAST and count < 1 << 20:
            count *= 4
        counts[name] = count
    found: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds):
        for name in list(programs)[:: -1 if number % 2 else 1]:
            few, many = programs[name](counts[name]), programs[name](2 * counts[name])
            found[name].append((many - few) / counts[name])
    return found


def median(times: list[float]) -> float:
    """Returns the median; a difference of two noisy times may be 0 or less."""
    return max(statistics.median(times), 1e-12)
