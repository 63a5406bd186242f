r"""What a save costs, in training steps of the same process with and without one.

A turn is a number of steps; turns that begin with a save take turns with those that do not, and the
results are medians of ratios within a round. A turn with a save waits as the loop does (for the
numbers of the step, and for the state to be finite), and its end waits for the last step alone, so
that what the saving thread takes from the steps is counted. Times of a machine that others use say
little; the processor time of a turn says what a save costs where the devices are the processor.

  python benchmarks/checkpoints.py --out=benchmarks/results/checkpoints_cpu.json
  python benchmarks/checkpoints.py --config=mor:360m --every=50 --rounds=5
"""

import argparse
import json
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
from train_step import batch

from recursia import budget, config, settings, sharding
from recursia.train.loop import _is_finite
from recursia.train.step import Trainer
from recursia.workdir.checkpoint import Checkpoints


class Turn(NamedTuple):
    """Seconds of a turn: by the clock, of all processor cores, and in which a save blocked."""

    seconds: float
    processor: float
    blocked: float


class Steps:
    """Training steps of a run on one batch, and saves of its state."""

    def __init__(self, run: settings.Run, directory: pathlib.Path):
        """Compiles the step, and makes one step and one save."""
        vocab_size = budget.vocab_size(run)
        self.trainer = Trainer(run, run.model.sized(vocab_size), sharding.make_mesh(run.mesh))
        self.rows = self.trainer.put(batch(run, vocab_size))
        self.update = self.trainer.step_function(run.train.num_steps)
        self.state, self.count = self.trainer.init(), 0
        self.checkpoints = Checkpoints(directory / "checkpoints", 2)
        self.turn(1, saves=True)

    def turn(self, count: int, saves: bool) -> Turn:
        """Makes so many steps, after a save or without one."""
        start, used, blocked = time.perf_counter(), time.process_time(), 0.0
        if saves:
            bool(_is_finite(self.state))
            began = time.perf_counter()
            self.checkpoints.save(self.count, self.state, {"model": {}, "data": {}})
            blocked = time.perf_counter() - began
        for _ in range(count):
            self.state, measured = self.update(self.state, self.rows)
        float(measured["loss"])
        self.count += count
        seconds = time.perf_counter() - start
        self.checkpoints.finish()
        return Turn(seconds, time.process_time() - used, blocked)


def measure(run: settings.Run, every: list[int], rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each number of steps between two saves."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        steps = Steps(run, pathlib.Path(directory))
        for count in every:
            plain, saving = [], []
            for number in range(rounds):
                for saves in (False, True) if number % 2 else (True, False):
                    (saving if saves else plain).append(steps.turn(count, saves))
            pairs = list(zip(plain, saving, strict=True))
            ratio = [b.seconds / a.seconds for a, b in pairs]
            processor = [b.processor / a.processor for a, b in pairs]
            found.append(
                {
                    "every_steps": count,
                    "time_ratio": statistics.median(ratio),
                    "time_ratio_quartiles": statistics.quantiles(ratio, n=4)[::2],
                    "processor_ratio": statistics.median(processor),
                    "processor_ratio_quartiles": statistics.quantiles(processor, n=4)[::2],
                    "seconds_per_step": statistics.median(t.seconds for t in plain) / count,
                    "processor_seconds_per_save": statistics.median(
                        b.processor - a.processor for a, b in pairs
                    ),
                    "seconds_blocked_per_save": statistics.median(t.blocked for t in saving),
                }
            )
            print(json.dumps(found[-1]), file=sys.stderr)
        leaves = jax.tree.leaves(steps.state)
        size = {"arrays": len(leaves), "bytes": sum(leaf.nbytes for leaf in leaves)}
        steps.checkpoints.close()
    return [{**size, **row} for row in found]


def main() -> None:
    """Measures, and prints or writes the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--config", default="mor:tiny")
    options.add_argument("--every", type=lambda typed: [int(n) for n in typed.split(",")])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=pathlib.Path)
    options.set_defaults(every=[10, 50])
    given = options.parse_args()
    result = {
        "config": given.config,
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rounds": given.rounds,
        "rows": measure(config.load(given.config, {}), given.every, given.rounds),
    }
    text = json.dumps(result, indent=2) + "\n"
    given.out.write_text(text) if given.out else print(text, end="")


if __name__ == "__main__":
    main()
