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

from recursia.errors import DataError, Diverged, Preempted
from recursia.workdir import ending, lock

STEP_SECONDS = 0.02
received = []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--workdir", type=pathlib.Path)
    given, rest = parser.parse_known_args()
    typed = dict(item.removeprefix("--config.").split("=", 1) for item in rest)
    given.workdir.mkdir(parents=True, exist_ok=True)
    rate = typed["optimizer.learning_rate"]
    behaviour = json.loads(os.environ.get("BEHAVIOUR", "{}")).get(rate, "")
    with (given.workdir / "starts.jsonl").open("a") as file:
        cpus = sorted(os.sched_getaffinity(0))
        file.write(json.dumps({"cpus": cpus, "threads": os.environ.get("NPROC")}) + "\n")
    if behaviour == "crash":
        print("first line\nRuntimeError: no such thing")
        return 1
    try:
        with contextlib.closing(lock.Lock(given.workdir, print)), ending.recorded(given.workdir):
            train(given.workdir, float(rate), behaviour)
    except (Diverged, DataError, Preempted) as error:
        print(f"recursia: {error}")
        return error.exit_code
    return 0


def train(workdir: pathlib.Path, rate: float, behaviour: str) -> None:
    ending.begin(workdir)
    record = json.loads(pathlib.Path(os.environ["RECORD"]).read_text())
    (workdir / "config.json").write_text(json.dumps(record))
    metrics, loss = workdir / "metrics.jsonl", abs(math.log10(rate) + 2)
    done = metrics.read_text().count("\n") if metrics.exists() else 0
    if behaviour == "no data":
        raise DataError("data.path: there is none")
    for step in range(done + 1, record["train"]["num_steps"] + 1):
        row = {"step": step, "loss": loss, "validation_loss": loss + 1 / step, "seconds_step": 1}
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        time.sleep(1.0 if behaviour == "slow" else STEP_SECONDS)
        if behaviour == "diverge":
            raise Diverged(f"step {step}: loss nan")
        if received:
            raise Preempted("stopped by a signal")


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, lambda number, _: received.append(number))
    sys.exit(main())
