"""Adaptive search through Optuna: each trial is suggested by the results of those before.

Any number of workers, on any hosts that share the directory, ask one study, whose journal is
`optuna.journal`. A worker holds the lock of a folder of its own; the trials of one that was killed
are asked for again, with the same overrides, so that they go on from their directories.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from recursia import buckets, console
from recursia.errors import ConfigError, StorageError
from recursia.sweep import directory, local, standing, states, view
from recursia.sweep.declaration import Declaration
from recursia.sweep.directory import Sweep
from recursia.sweep.division import Division
from recursia.sweep.processes import Process
from recursia.sweep.search import Search
from recursia.sweep.study import AGAIN, NAME, STATE, SURPLUS, WORKER, counted, opened, sampler
from recursia.sweep.trial import Trial
from recursia.sweep.view import View
from recursia.train.writer import METRICS
from recursia.workdir import place

WORKERS = "workers"  # folder of a sweep's directory, with a folder for each worker
TWINS = 20  # equal suggestions in a row, after which a sampler has nothing new
YOUNG_SECONDS = 60.0  # age up to which a trial may not yet say who runs it


def run(sweep: Sweep, declared: Declaration, division: Division, retries: bool) -> int:
    """Runs trials until there are as many as declared; returns the exit code.

    Args:
      sweep: in whose directory they are.
      declared: the search.
      division: of this machine among its trials.
      retries: whether trials that failed are run once more.

    Raises:
      ConfigError: if Optuna is not installed, or the search suggests what is no trial.
      Preempted: after a signal, once every running trial is saved.
    """
    assert declared.search is not None
    with _worker(sweep.directory) as name, opened(sweep.directory, declared.search) as study:
        worker = Worker(sweep, declared, declared.search, study, name)
        if retries:
            worker.retry()
        received = worker.work(local.Runner(sweep, division))
    return local.concluded(sweep, received)


@contextlib.contextmanager
def _worker(above: pathlib.Path) -> Iterator[str]:
    """Holds the lock of a worker's folder while it works; yields its name."""
    name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    folder, here = above / WORKERS / name, place.of(above)
    try:
        folder.mkdir(parents=True)
        held = here.lock(folder, console.say)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield name
    finally:
        held.close()
        here.remove(folder)


@dataclasses.dataclass
class Asked:
    """A trial that this worker runs.

    Attributes:
      of: the study's trial.
      trial: the sweep's.
      process: that trains it; None while another process does, which an earlier worker left.
      reported: the last step whose validation loss the study has.
      looked: when its directory was last read, by the clock of `time.monotonic`.
    """

    of: Any
    trial: Trial
    process: Process | None = None
    reported: int = -1
    looked: float = -math.inf


class Worker:
    """Asks a study for trials, runs them, and tells it what became of them."""

    def __init__(self, sweep: Sweep, declared: Declaration, search: Search, study: Any, name: str):
        """Runs nothing yet.

        Args:
          sweep: in whose directory the trials are.
          declared: makes overrides of a trial.
          search: its settings.
          study: of Optuna.
          name: of this worker.
        """
        self._sweep, self._declared, self._search = sweep, declared, search
        self._study, self._name = study, name
        self._asked: dict[str, Asked] = {}
        self._twins, self._is_exhausted = 0, False
        self._pause = view.FAR if buckets.is_place(sweep.directory) else 0.0

    def work(self, runner: local.Runner) -> int | None:
        """Runs trials to the end of the search; returns the signal that ended it, if one did."""
        with contextlib.closing(runner), View(self._sweep) as shown:
            is_over = False
            while not (runner.is_idle() and (runner.received or (is_over and not self._asked))):
                while not runner.is_full() and not (is_over := (asked := self._ask()) is None):
                    self._asked[asked.trial.name] = asked
                    if self._state(asked) != states.RUNNING:
                        asked.process = runner.start(asked.trial.name)
                        shown.started(asked.trial.name)
                for name in runner.over():
                    self._tell(self._asked.pop(name))
                    shown.ended(name)
                for asked in list(self._asked.values()):
                    self._watch(asked, runner)
                shown.show(runner.names())
                runner.wait()
        return runner.received

    def _state(self, asked: Asked) -> str:
        return states.of(self._sweep.folder(asked.trial.name))[0]

    def _ask(self) -> Asked | None:
        """Returns the next trial to run; None if there are enough."""
        while self._twins < TWINS:
            self._reclaim()
            trials = self._study.get_trials(deepcopy=False)
            is_waiting = any(each.state.name == "WAITING" for each in trials)
            is_enough = len(counted(trials)) >= self._search.num_trials
            if not is_waiting and (is_enough or self._is_exhausted):
                return None
            self._study.sampler = sampler(self._search, len(trials))
            of = self._study.ask()
            of.set_user_attr(WORKER, self._name)
            trials = self._study.get_trials(deepcopy=False)
            earlier = [each for each in counted(trials) if each.number < of.number]
            if AGAIN not in of.user_attrs and len(earlier) >= self._search.num_trials:
                self._drop(of)  # another worker was faster
                continue
            if (asked := self._suggested(of)) is not None:
                self._twins = 0
                return asked
        console.say(f"the last {TWINS} suggestions are of trials that there are; ending the search")
        return None

    def _suggested(self, of: Any) -> Asked | None:
        """Returns the trial that the study suggests, if it has to be run; else its result is told.

        Raises:
          ConfigError: if the search raises or makes a mistake.
        """
        try:
            trial = self._declared.suggested(of)
        except ConfigError:
            self._end(of, state="FAIL")
            raise
        of.set_user_attr(NAME, trial.name)
        asked, is_again = Asked(of, trial), AGAIN in of.user_attrs
        state = self._state(asked)
        is_twin = trial.name in self._asked or (state == states.RUNNING and not is_again)
        if is_twin:
            self._drop(of)
            self._twins += 1
        elif state in states.RESULTS or (state == states.FAILED and not is_again):
            self._tell(asked)
            self._twins += 1
        else:
            directory.add(self._sweep.directory, trial)
            return asked
        return None

    def _end(self, of: Any, loss: float | None = None, state: str = "COMPLETE") -> None:
        """Tells the study that a trial has ended."""
        from optuna.trial import TrialState

        try:
            self._study.tell(of, loss, TrialState[state])
        except (
            RuntimeError
        ):  # a sampler of a finite space stops its study, which only `optimize` may
            self._is_exhausted = True

    def _drop(self, of: Any) -> None:
        """Ends a trial that does not count."""
        of.set_user_attr(SURPLUS, True)
        self._end(of, state="FAIL")

    def _watch(self, asked: Asked, runner: local.Runner) -> None:
        """Reports new validation losses, and ends a trial that the pruner gives up."""
        if time.monotonic() - asked.looked < self._pause:
            return
        asked.looked = time.monotonic()
        folder = self._sweep.folder(asked.trial.name)
        for row in standing.rows(folder / METRICS):
            loss = row.get(standing.VALIDATION)
            if row["step"] > asked.reported and loss is not None and math.isfinite(loss):
                asked.of.report(loss, row["step"])
                asked.reported = row["step"]
        if asked.process is None:
            self._adopt(asked, runner)
        elif not (folder / states.PRUNING).exists() and asked.of.should_prune():
            (folder / states.PRUNING).touch()
            asked.process.send(signal.SIGTERM)

    def _adopt(self, asked: Asked, runner: local.Runner) -> None:
        """Goes on with a trial whose process, which an earlier worker left, has ended."""
        state = self._state(asked)
        if state in (*states.RESULTS, states.FAILED):
            self._tell(self._asked.pop(asked.trial.name))
        elif state != states.RUNNING and not runner.is_full():
            asked.process = runner.start(asked.trial.name)

    def _tell(self, asked: Asked) -> None:
        """Tells the study what became of a trial; of one that can go on, nothing yet."""
        state, loss = self._state(asked), None
        if state == states.FINISHED:
            folder = self._sweep.folder(asked.trial.name)
            loss = standing.of(asked.trial.name, folder).validation_loss
        asked.of.set_user_attr(STATE, state)
        if loss is not None and math.isfinite(loss):
            self._end(asked.of, loss)
        elif state in (states.DIVERGED, states.PRUNED):
            self._end(asked.of, state="PRUNED")
        elif state in (states.FINISHED, states.FAILED):
            self._end(asked.of, state="FAIL")
        elif state == states.RUNNING:  # by another worker
            self._drop(asked.of)

    def _reclaim(self) -> None:
        """Asks again for the trials of workers that are no more."""
        trials = self._study.get_trials(deepcopy=False)
        again = {each.user_attrs.get(AGAIN) for each in trials}
        for each in trials:
            if each.state.name != "RUNNING" or not self._is_stale(each):
                continue
            if each.number not in again:
                self._again(each)
            with contextlib.suppress(ValueError):  # another worker was faster
                self._end(each.number, state="FAIL")

    def _is_stale(self, of: Any) -> bool:
        name = of.user_attrs.get(WORKER)
        if name is None:
            return time.time() - of.datetime_start.timestamp() > YOUNG_SECONDS
        worker = self._sweep.directory / WORKERS / name
        return not place.of(worker).is_live(worker)

    def retry(self) -> None:
        """Asks again for the trials that failed."""
        trials = self._study.get_trials(deepcopy=False)
        again = {each.user_attrs.get(AGAIN) for each in trials}
        for each in trials:
            name = each.user_attrs.get(NAME)
            is_over = each.state.name == "FAIL" and each.number not in again
            if name and is_over and SURPLUS not in each.user_attrs:
                if states.of(self._sweep.folder(name))[0] == states.FAILED:
                    self._again(each)

    def _again(self, of: Any) -> None:
        self._study.enqueue_trial(of.params, user_attrs={AGAIN: of.number})
