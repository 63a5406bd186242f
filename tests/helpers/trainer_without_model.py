"""Stands for `recursia train` where a test is of what runs it: the same directory, no model.

Its loss is the distance of the learning rate from 0.01, in powers of ten; `BEHAVIOUR`, JSON by the
learning rate as typed, says what goes wrong.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import time

from recursia import buckets, compiled, jsonlines
from recursia.errors import DataError, Diverged, Preempted
from recursia.workdir import ending, place

STEP_SECONDS = 0.02
received = []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--workdir", type=buckets.path)
    given, rest = parser.parse_known_args()
    typed = dict(item.removeprefix("--config.").split("=", 1) for item in rest)
    given.workdir.mkdir(parents=True, exist_ok=True)
    rate = typed["optimizer.learning_rate"]
    behaviour = json.loads(os.environ.get("BEHAVIOUR", "{}")).get(rate, "")
    started: dict = {"cpus": sorted(os.sched_getaffinity(0)), "threads": os.environ.get("NPROC")}
    started["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    started["cache"] = os.environ.get(compiled.VARIABLE)
    append(given.workdir / "starts.jsonl", started)
    if behaviour == "crash":
        print("first line\nRuntimeError: no such thing")
        return 1
    try:
        held = place.of(given.workdir).lock(given.workdir, print)
        with contextlib.closing(held), ending.recorded(given.workdir):
            train(given.workdir, float(rate), behaviour)
    except (Diverged, DataError, Preempted) as error:
        print(f"recursia: {error}")
        return error.exit_code
    return 0


def append(path: pathlib.Path, row: dict) -> None:
    place.of(path).append(path, json.dumps(row) + "\n")


def train(workdir: pathlib.Path, rate: float, behaviour: str) -> None:
    ending.begin(workdir)
    record = json.loads(pathlib.Path(os.environ["RECORD"]).read_text())
    (workdir / "config.json").write_text(json.dumps(record))
    metrics, loss = workdir / "metrics.jsonl", abs(math.log10(rate) + 2)
    done = len(list(jsonlines.values(metrics))) if metrics.exists() else 0
    if behaviour == "no data":
        raise DataError("data.path: there is none")
    for step in range(done + 1, record["train"]["num_steps"] + 1):
        row = {"step": step, "loss": loss, "validation_loss": loss + 1 / step, "seconds_step": 1}
        append(metrics, row)
        time.sleep(1.0 if behaviour == "slow" else STEP_SECONDS)
        if behaviour == "diverge":
            raise Diverged(f"step {step}: loss nan")
        if received:
            raise Preempted("stopped by a signal")


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, lambda number, _: received.append(number))
    sys.exit(main())
