r"""Kernels judged by what they should reach: against libraries, areas, and the device's own rates.

Forward and backward passes are timed apart, with random cotangents, on the device's own clock
(`clock.py`); candidates take turns. Every row is first checked at its shape: against float32, and
for equal bits in two runs. It is appended to --out as soon as it is there, and a row that the file
has, of the same commit and flags, is not measured again: the same command goes on after a stop.

  python benchmarks/kernels.py --out=benchmarks/results/kernels_h100.jsonl
  python benchmarks/kernels.py --tune --out=benchmarks/results/kernels_h100.jsonl
  python benchmarks/kernels.py --cut=32 --rounds=3 --out=benchmarks/results/kernels_cpu.jsonl

Shapes are those of published models in bfloat16. On a CPU, where --cut divides lengths, only
references and XLA's forms run, and targets say nothing.

With --tune the sizes of our kernels are varied instead, and those that are faster are written to
the device's table in `kernels/tuned`, still correct: run it before the measurement. It goes on
after a stop as a measurement does. A CPU has no kernel to tune.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import clock
import jax
import jax.numpy as jnp
import tuning
from cases import Case, attention, draw, experts

from recursia.kernels.dispatch import Op

TOLERANCE = 0.05  # of the largest number of the result in float32


def program(f: Callable[..., Any], arrays: tuple[Any, ...], count: int) -> tuple[Callable, Any]:
    """Returns what is timed, and its arguments: of a backward pass, residuals and a cotangent."""
    if not count:
        return f, arrays
    given, rest = arrays[:count], arrays[count:]
    out, pull = jax.jit(lambda *given: jax.vjp(lambda *x: f(*x, *rest), *given))(*given)
    residuals, tree = jax.tree.flatten(pull)
    return (lambda kept, grad: jax.tree.unflatten(tree, kept)(grad)), (
        residuals,
        draw(9, *out.shape, dtype=out.dtype),
    )


def machine(cut: int, rounds: int) -> dict[str, float]:
    """Returns the bytes per second of a copy, and FLOPs per second of a bfloat16 product."""
    side = 8192 // cut
    x, many = draw(0, side, side), draw(0, 16 * side, side)
    functions = {"copy": lambda x: -x, "product": lambda x: x @ x}
    took = clock.measure(functions, {"copy": (many,), "product": (x,)}, rounds)
    return {
        "bytes_per_second": 4.0 * many.size / clock.median(took["copy"]),
        "flops_per_second": 2.0 * side**3 / clock.median(took["product"]),
    }


def measured(case: Case, rates: dict[str, float], rounds: int) -> dict[str, Any]:
    """Returns the row of a case: checked, timed and judged.

    Raises:
      AssertionError: if ours is further from float32 than TOLERANCE.
    """
    errors = checked(case)
    with watched() as backends:
        made = {name: program(f, case.arrays, case.count) for name, f in case.candidates.items()}
        functions = {name: f for name, (f, _) in made.items()}
        arrays = {name: given for name, (_, given) in made.items()}
        times = clock.measure(functions, arrays, rounds)
    took = {name: clock.median(each) for name, each in times.items()}
    return {
        "case": case.name,
        "shapes": [list(x.shape) for x in case.arrays],
        "seconds": took,
        "raw_seconds": times,
        "error_over_float32": errors,
        "is_same_twice": is_same_twice(functions["ours"], arrays["ours"]),
        "backends": sorted(backends),
        "target": case.target,
        "reached": None if jax.default_backend() == "cpu" else case.judged(took, rates),
    }


def checked(case: Case) -> dict[str, float]:
    """Returns the largest error of each candidate, over the largest number in float32."""
    part = case.part(case.arrays)
    wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    run = lambda f, arrays: jax.jit(lambda given: f(*given))(arrays)

    def results(f: Callable[..., Any], arrays: tuple[Any, ...]) -> list[Any]:
        f, given = program(f, arrays, case.count)
        return jax.tree.leaves(run(f, given))[: case.count or None]

    wanted, found = results(case.reference, tuple(map(wide, part))), {}
    for name, f in case.candidates.items():
        pairs = zip(map(wide, results(f, part)), wanted, strict=True)
        like = [(a, b) for a, b in pairs if a.shape == b.shape]  # one has other queries
        found[name] = max(
            (float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in like), default=0.0
        )
    assert found["ours"] < TOLERANCE, f"{case.name}: {found}"
    return found


def is_same_twice(f: Callable[..., Any], arrays: Any) -> bool:
    """Returns whether two runs give the same bits."""
    run = jax.jit(f)
    one, other = (jax.tree.leaves(run(*arrays)) for _ in range(2))
    return all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def watched() -> Iterator[set[str]]:
    """Yields a set to which the implementations are added that ops choose as they are lowered."""
    choose, found = Op.choose, set()

    def told(op: Op, *how: Any) -> Any:
        result = choose(op, *how)
        found.add(f"{op.name} {result[0]}")
        return result

    Op.choose = told
    try:
        yield found
    finally:
        Op.choose = choose


def circumstances(cut: int) -> dict[str, Any]:
    """Returns what a row is only comparable with."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "command": " ".join(["python", "benchmarks/kernels.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "runtime": jax.devices()[0].client.platform_version.split("\n")[0],
        "commit": commit,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "dtype": "bfloat16",
        "lengths_divided_by": cut,
    }


def done(path: pathlib.Path | None, here: dict[str, Any]) -> set[str]:
    """Returns the cases that the file has under the same circumstances."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    kept = here.keys() - {"command"}
    rows = map(json.loads, lines)
    return {row["case"] for row in rows if all(row.get(name) == here[name] for name in kept)}


def tuned(case: Case, rounds: int) -> dict[str, Any]:
    """Writes faster sizes of a case's kernels to the table of this device; returns its row."""

    def timed() -> float:
        f, arrays = program(case.candidates["ours"], case.arrays, case.count)
        return clock.median(clock.measure({"ours": f}, {"ours": arrays}, rounds)["ours"])

    entries, here = tuning.tune(timed), circumstances(1)
    with tuning.sizes({key: entry["config"] for key, entry in entries.items()}):
        checked(case)
    told = {name: here[name] for name in ("commit", "versions", "runtime", "flags")}
    tuning.write(here["device"], entries, **told)
    return {"case": f"sizes of {case.name}", "faster": len(entries)}


def shown(row: dict[str, Any]) -> str:
    """Returns a row as a line."""
    if "faster" in row:
        return f"{row['case']:44} {row['faster']} kernels faster"
    ours = row["seconds"]["ours"]
    others = " ".join(
        f"{name} {seconds / ours:.2f}x"
        for name, seconds in row["seconds"].items()
        if name != "ours"
    )
    reached, verdict = row["reached"], ""
    if reached is not None:
        verdict = f"{'met' if reached >= 1 else 'missed'}: {reached:.2f} of {row['target']}"
    same = "" if row["is_same_twice"] else "  OTHER BITS IN A SECOND RUN"
    return f"{row['case']:44} {1e6 * ours:10.1f} us  {others}  {verdict}{same}"


def parse(words: list[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description="kernels judged by their targets")
    parser.add_argument("--cut", type=int, help="divides lengths; 1, on a CPU 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="part of the name of a case")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no case after them")
    parser.add_argument("--tune", action="store_true", help="write faster sizes of kernels")
    parser.add_argument("--out", type=pathlib.Path, help="append rows here as JSON lines")
    return parser.parse_args(words)


def main() -> int:
    """Measures what is missing; returns 75 if some is left for the next call."""
    options, begun = parse(sys.argv[1:]), time.monotonic()
    cut = options.cut or (32 if jax.default_backend() == "cpu" else 1)
    if options.tune and jax.default_backend() == "cpu":
        print("kernels: a CPU runs no kernel of ours, so there is nothing to tune")
        return 0
    here = circumstances(cut)
    there, rates = done(options.out, here), None
    for case in itertools.chain(attention(cut), experts(cut)):
        name = f"sizes of {case.name}" if options.tune else case.name
        if options.only not in case.name or name in there:
            continue
        if time.monotonic() - begun > 60 * options.minutes:
            print("kernels: out of time; the same command measures the rest", file=sys.stderr)
            return 75
        if options.tune:
            row = {**tuned(case, options.rounds), **here}
        else:
            rates = rates or machine(cut, options.rounds)
            row = {**measured(case, rates, options.rounds), **here, **rates}
        print(shown(row), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
