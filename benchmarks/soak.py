r"""Runs broken on purpose, again and again, and compared to the bit with runs that nothing broke.

  python benchmarks/soak.py --minutes=60 --out=benchmarks/results/soak_cpu.json
  python benchmarks/soak.py --minutes=0                                  # each kind once

Each preset in turn is trained unbroken, and then under the faults of `faults.py`, drawn from a deck
that has every kind once before any comes again. Every second run is left to one process, which
meets only faults that it survives, and whose memory and descriptors are counted. What is drawn
depends on the seed alone; the instant of a fault is a step and a fraction of a second after it.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from typing import Any

import faults
import jax
import numpy as np
from broken import Broken, Finished, Unexpected, hear_signals, rows_of

CONFIGS = ["mor:tiny", "mor:tiny_token", "huginn:tiny", "universal:tiny", "ouro:tiny", "moeut:tiny"]
SIZE = {
    "train.batch_size": 2, "train.seq_len": 32, "checkpoint.every_steps": 5, "checkpoint.keep": 3,
    "eval.every_steps": 60, "eval.num_batches": 1, "eval.sample_tokens": 8, "log.every_steps": 1,
    "schedule.warmup_steps": 2,
}  # fmt: skip
COUNTED = ("step", "megabytes", "descriptors", "threads")
BROKEN_STEPS, STEADY_STEPS = 240, 1200
TIMING = ("tokens_per_second", "flops_utilization", "flops_utilization_6n")


class Soak:
    """The runs of a soak, and what became of its faults."""

    def __init__(self, given: argparse.Namespace, place: pathlib.Path):
        """Begins with nothing injected."""
        self.given, self.place = given, place
        self.until = time.monotonic() + 60 * given.minutes
        kinds = given.kind or list(faults.KINDS)
        self.rows = {name: collections.Counter() for name in kinds}
        self.lost: dict[str, int] = dict.fromkeys(kinds, 0)
        self.wrong: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        survived = [kind for kind in kinds if kind in faults.SURVIVED]
        self.decks = {False: self._deck(kinds, 0), True: self._deck(survived, 1)}
        self.is_ever_steady = bool(survived)

    def _deck(self, kinds: Any, stream: int) -> Any:
        rng = np.random.default_rng([self.given.seed, stream])
        while True:
            yield from rng.permutation(sorted(kinds)).tolist()

    def is_over(self) -> bool:
        """Returns whether it is time to end: every kind has come at least once."""
        is_late = time.monotonic() >= self.until
        return is_late and all(row["injected"] for row in self.rows.values())

    def play(self, number: int, config: str, is_steady: bool) -> None:
        """Trains a preset unbroken and broken, and compares the two."""
        steps = self.given.steady_steps if is_steady else self.given.broken_steps
        sizes = {**SIZE, "train.num_steps": steps, "checkpoint.every_steps": self.given.every}
        changed = [f"--config.{name}={value}" for name, value in sizes.items()]
        arguments = [f"--config={config}", *changed, *self.given.override]
        folder = self.place / f"run{number}"
        whole = Broken(folder / "unbroken", arguments, steps, self.given.every)
        broken = Broken(folder / "broken", arguments, steps, self.given.every)
        whole.finish()
        count = 0
        while not self.is_over() and broken.has_room():
            kind = next(self.decks[is_steady])
            self.inject(kind, broken, [self.given.seed, number, count], config)
            count += 1
        at = {"kind": "the end", "config": config, "run": number, "faults": count}
        differs = ["it did not end"]
        try:
            broken.finish()
            differs = difference(whole, broken)
        except Unexpected as error:
            self.report(at, broken, str(error))
        finally:
            broken.stop()
        if differs:
            self.report(at, broken, f"differs from the unbroken run in {', '.join(differs)}")
        row = {"config": config, "steps": steps, "steady": is_steady, "faults": count}
        row |= {"starts": broken.starts, "equal": not differs, "memory": memory(broken, whole)}
        self.runs.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    def inject(self, kind: str, broken: Broken, seed: list[int], config: str) -> None:
        """Injects a fault and checks what becomes of the run."""
        at = {"kind": kind, "config": config, "seed": seed}
        rng, row = np.random.default_rng(seed), self.rows[kind]
        broken.lost = 0
        try:
            at["detail"] = faults.KINDS[kind](broken, rng)
            row["survived"] += 1
        except Finished:  # the run came to its end first
            return
        except Exception as error:  # of this program too: the soak goes on
            self.report(at, broken, f"{type(error).__name__}: {error}")
            broken.stop()
        row["injected"] += 1
        self.lost[kind] = max(self.lost[kind], broken.lost)
        print(f"{kind}: {at.get('detail')}, lost {broken.lost}", file=sys.stderr, flush=True)

    def report(self, at: dict[str, Any], broken: Broken, reason: str) -> None:
        """Records what went wrong, with what it takes to repeat it."""
        self.wrong.append({**at, "step": broken.made(), "reason": reason, "said": broken.tail()})
        print(json.dumps(self.wrong[-1]), file=sys.stderr, flush=True)
        if at["kind"] in self.rows:
            self.rows[at["kind"]]["wrong"] += 1

    def result(self) -> dict[str, Any]:
        """Returns what was found."""
        kinds = {
            name: {
                **{count: row[count] for count in ("injected", "survived", "wrong")},
                "most_steps_lost": self.lost[name],
            }
            for name, row in self.rows.items()
        }
        return {"kinds": kinds, "runs": self.runs, "wrong": self.wrong}


def difference(whole: Broken, broken: Broken) -> list[str]:
    """Returns the names of what two finished runs do not share to the bit."""
    plain = lambda row: {
        k: v for k, v in row.items() if k not in TIMING and not k.startswith("seconds_")
    }
    found = []
    for name in ("metrics.jsonl", "samples.jsonl"):
        ours, theirs = ([*map(plain, rows_of(run.workdir / name))] for run in (whole, broken))
        found += [name] * (ours != theirs)
    ours, theirs = (run.arrays(run.steps) for run in (whole, broken))
    names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    return found + [f"array {name}" for name in sorted(names)[:3]]


def memory(*runs: Broken) -> list[dict[str, Any]]:
    """Returns the memory and descriptors of the longest process of each run, by quarters of it."""
    found = []
    for run in runs:
        samples = max(run.samples, key=len, default=[])
        quarters = [q for q in np.array_split(np.asarray(samples), 4) if len(q)]
        if len(quarters) == 4:
            middle = [[statistics.median(column) for column in q.T.tolist()] for q in quarters]
            names = ("step", "megabytes", "descriptors", "threads")
            found.append(
                {n: list(v) for n, v in zip(names, zip(*middle, strict=True), strict=True)}
            )
    return found


def table(found: dict[str, Any]) -> str:
    """Returns the kinds of faults as a table, and below it the runs.

    Memory and descriptors are medians of each quarter of the longest process of a run that is left
    to one.
    """
    lines = ["| fault | injected | survived | most steps lost | wrong |", "|---|--:|--:|--:|--:|"]
    for name, row in found["kinds"].items():
        numbers = (row[n] for n in ("injected", "survived", "most_steps_lost", "wrong"))
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    totals = [sum(row[n] for row in found["kinds"].values()) for n in ("injected", "survived")]
    lines.append(f"| all | {totals[0]} | {totals[1]} | | {len(found['wrong'])} |")
    head = ("run", "steps", "starts", "faults", "equal", "MB", "descriptors")
    lines += ["", f"| {' | '.join(head)} |", "|---|--:|--:|--:|---|---|---|"]
    for run in found["runs"]:
        counted = run["memory"][0] if run["steady"] and run["memory"] else {}
        by = [
            ", ".join(f"{x:.0f}" for x in counted.get(n, ())) for n in ("megabytes", "descriptors")
        ]
        cells = (run["config"], run["steps"], run["starts"], run["faults"])
        lines.append(f"| {' | '.join(map(str, (*cells, 'yes' if run['equal'] else 'NO', *by)))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Soaks, prints the table, and returns 1 if anything was wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=60, help="until the last run begins")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--config", type=lambda typed: typed.split(","), default=CONFIGS)
    options.add_argument("--kind", action="append", choices=faults.KINDS, help="default: every")
    options.add_argument("--every", type=int, default=5, help="steps between saves")
    options.add_argument("--broken_steps", type=int, default=BROKEN_STEPS)
    options.add_argument("--steady_steps", type=int, default=STEADY_STEPS)
    options.add_argument("--override", action="append", default=[], help="--config.FIELD=VALUE")
    options.add_argument("--out", type=pathlib.Path)
    given, began = options.parse_args(), time.monotonic()
    hear_signals()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"  # which a fault breaks
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of it is compiling
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        soak = Soak(given, pathlib.Path(folder))
        steadiness = itertools.cycle((False, True) if soak.is_ever_steady else (False,))
        turns = zip(itertools.cycle(given.config), steadiness, strict=False)
        for number, (config, is_steady) in enumerate(turns):
            if soak.is_over():
                break
            soak.play(number, config, is_steady)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        **soak.result(),
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result), end="")
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
