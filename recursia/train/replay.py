"""Replays one step of a run, twice, to say whether its numbers are those of the machine or not.

The same program gives the same numbers on the same batch, bit for bit. If two repetitions differ,
the machine is at fault; if they agree with each other and with what the run recorded, a fault of
the step comes from its data or from the program.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import struct
from typing import Any

import jax
import numpy as np

from recursia import console, jsonlines
from recursia.data import verification
from recursia.errors import ConfigError
from recursia.train import earlier
from recursia.train.divergence import Watch
from recursia.train.migration import moved
from recursia.train.opening import Parts, opened
from recursia.train.placement import State
from recursia.train.writer import INCIDENTS, METRICS
from recursia.workdir import settings_history
from recursia.workdir.checkpoint import Checkpoints

NUMBERS = ("loss", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a step gave in two repetitions.

    Attributes:
      step: that was replayed.
      start: the checkpoint before it; 0 without one is the initial state.
      loss: in nats per token, of the first repetition.
      gradient_norm: of the first repetition.
      is_repeated: whether both gave the same numbers and the same state, bit for bit.
      recorded: the numbers that the run wrote of the step; None if it wrote none.
      differs_at: the first step after `start` whose record differs; None if none does.
      fault: what is wrong with the numbers by the run's own rule; empty if nothing is.
      batch: number of the batch, from 0.
      rows: where its rows are: the directory, and the number of the row.
    """

    step: int
    start: int
    loss: float
    gradient_norm: float
    is_repeated: bool
    recorded: dict[str, float] | None
    differs_at: int | None
    fault: str
    batch: int
    rows: list[tuple[str, int]]

    @property
    def is_machine(self) -> bool:
        """Whether a machine is at fault: this one, or the one that trained."""
        return not self.is_repeated or self.differs_at is not None

    def verdict(self) -> str:
        """Returns in a line what is at fault."""
        if not self.is_repeated:
            return "two repetitions differ: this machine is at fault"
        if self.differs_at is not None:
            return (
                "two repetitions are equal, but not to the record, which differs from step "
                f"{self.differs_at} on: the machine erred then, or it was another machine, another "
                "version or other settings"
            )
        if self.recorded is None:
            return "two repetitions are equal; the run recorded no numbers of this step"
        if not self.fault:
            return "two repetitions are equal, and equal to the record: nothing is at fault"
        return (
            "two repetitions are equal, and equal to the record: the data or the program is at "
            "fault, not the machine"
        )


def replay(workdir: pathlib.Path, step: int) -> Replay:
    """Repeats a step from the checkpoint before it, twice; writes no step and no row.

    Args:
      workdir: the run's directory.
      step: from 1.

    Raises:
      ConfigError: if the directory is not a run's, or its settings do not fit these devices.
      DataError: if its data are missing or have changed.
      CheckpointError: if the checkpoint before the step cannot be read.
    """
    run = settings_history.of_step(workdir, step)
    if step > run.train.num_steps:
        raise ConfigError(f"--step={step}: takes 1 to {run.train.num_steps} of {workdir}")
    parts, folder = opened(run, workdir), workdir / "checkpoints"
    verification.remember(workdir / verification.FILE, parts.known)
    with contextlib.ExitStack() as stack:
        checkpoints, start = None, None
        if folder.is_dir():
            checkpoints = stack.enter_context(
                contextlib.closing(Checkpoints(folder, is_read_only=True))
            )
            start = max((s for s in checkpoints.steps() if s < step), default=None)
        first, second = (_repeated(parts, checkpoints, start, step) for _ in range(2))
    numbers, digest, watch = first
    records = _records(workdir, step, watch.batch(step))
    differs = [at for at in numbers if at in records and not _same(records[at], numbers[at])]
    loss, norm = (numbers[step][name] for name in NUMBERS)
    return Replay(
        step,
        start or 0,
        loss,
        norm,
        digest == second[1] and all(_same(numbers[at], second[0][at]) for at in numbers),
        records.get(step),
        min(differs, default=None),
        watch.fault(step, loss, norm),
        watch.batch(step),
        parts.loader.places(watch.batch(step)),
    )


def _repeated(
    parts: Parts, checkpoints: Checkpoints | None, start: int | None, step: int
) -> tuple[dict[int, dict[str, float]], str, Watch]:
    """Returns the numbers of each step up to `step`, and a digest of the state after it."""
    rule, trainer = parts.trainer.run.divergence, parts.trainer
    if checkpoints is None or start is None:
        state, watch = trainer.init(), Watch(rule, {})
        if trainer.run.train.init_from:
            state, _ = earlier.start(trainer, state, parts.loader.tokenizer)
    else:
        watch = Watch(rule, checkpoints.meta(checkpoints.choose(start)))
        state = checkpoints.restore(start, trainer.abstract())
    own, numbers = trainer, dict[int, dict[str, float]]()
    with console.doing(f"replaying steps {(start or 0) + 1} to {step}"):
        for at in range((start or 0) + 1, step + 1):
            batch = trainer.put(parts.loader.batch(watch.batch(at)))
            limit = watch.losses.limit(at)
            before, own = own, trainer.in_phase(at - 1)
            state = moved(state, before, own)
            state, metrics = trainer.step_function(at - 1)(state, batch, limit)
            numbers[at] = {name: float(metrics[name]) for name in NUMBERS}
            if at < step:
                watch.fault(at, *(numbers[at][name] for name in NUMBERS))
    return numbers, _digest(state), watch


def _digest(state: State) -> str:
    """Returns the digest of every array of a state."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def _records(workdir: pathlib.Path, step: int, batch: int) -> dict[int, dict[str, float]]:
    """Returns the numbers that a run wrote of each step up to `step`, and of its incident."""
    found: dict[int, dict[str, float]] = {}
    for name in (METRICS, INCIDENTS):
        for row in jsonlines.rows(workdir / name):
            if (at := row["step"]) > step:
                continue
            given = {number: _number(row.get(number)) for number in NUMBERS}
            numbers = {name: value for name, value in given.items() if value is not None}
            is_ours = name == METRICS or (at == step and row.get("batch") == batch)
            if is_ours and numbers.keys() == given.keys():
                found[at] = numbers
    return found


def _same(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Returns whether numbers are equal to the bit; NaN equals NaN."""
    return all(struct.pack("d", ours[name]) == struct.pack("d", theirs[name]) for name in NUMBERS)


def _number(value: Any) -> float | None:
    """Returns a number, or that of the name of one that is not finite; None for what is none."""
    is_name = isinstance(value, str) and value in ("nan", "inf", "-inf")
    return float(value) if is_name else jsonlines.number(value)
