"""Trials on this machine, several at a time."""

import signal
import time
from collections import deque

from recursia import buckets, console, signals, storage
from recursia.errors import Preempted, StorageError
from recursia.sweep import directory, standing, states, tables
from recursia.sweep.directory import Sweep
from recursia.sweep.division import Division
from recursia.sweep.processes import Process
from recursia.sweep.view import View

POLL_SECONDS = 0.25
FAR_SECONDS = 2.0  # the same, where to look is to ask a bucket
FAILED = 1  # the exit code, if a trial has failed


class Runner:
    """Runs trials until all have ended, or until a signal.

    Attributes:
      received: the signal; None until it arrives.
    """

    def __init__(self, sweep: Sweep, division: Division):
        """Starts nothing.

        Args:
          sweep: whose trials are run.
          division: of this machine among them.
        """
        self._sweep = sweep
        self._seconds = FAR_SECONDS if buckets.is_place(sweep.directory) else POLL_SECONDS
        self._free = deque(division.shares())
        self._running: list[Process] = []
        self._listener = signals.Listener(signals.ENDINGS, self.send)
        self._listener.has_work = True

    @property
    def received(self) -> int | None:
        """The first signal to this process."""
        return self._listener.received

    def send(self, number: int) -> None:
        """Sends a signal to all processes; each saves its step and ends."""
        if number == signal.SIGINT:
            console.say("saving the steps of the running trials; press Ctrl-C again to leave")
        for process in self._running:
            process.send(number)

    def is_full(self) -> bool:
        """Returns whether no other trial can be started."""
        return not self._free or self.received is not None

    def is_idle(self) -> bool:
        """Returns whether no trial is running here."""
        return not self._running

    def start(self, name: str) -> Process:
        """Starts a trial."""
        share = self._free.popleft()
        process = Process(self._sweep.trial(name), self._sweep.folder(name), share)
        self._running.append(process)
        if self.received is not None:  # while it was starting
            process.send(self.received)
        return process

    def ended(self) -> list[Process]:
        """Returns the processes that have ended since the last call."""
        over = [process for process in self._running if process.has_ended()]
        for process in over:
            self._running.remove(process)
            self._free.append(process.share)
        return over

    def over(self) -> list[str]:
        """Returns the names of the trials that have ended since the last call.

        Raises:
          StorageError: if the way one ended cannot be recorded: it would be run again for ever.
        """
        ended = self.ended()
        if lost := [process.lost for process in ended if process.lost]:
            raise StorageError(lost[0])
        return [process.trial.name for process in ended]

    def wait(self) -> None:
        """Waits until it is time to look again."""
        time.sleep(self._seconds)

    def names(self) -> list[str]:
        """Returns the names of the trials that are running here."""
        return [process.trial.name for process in self._running]

    def close(self) -> None:
        """Ends what is still running, after an error, and restores the signal handlers."""
        for process in self._running:
            process.send(signal.SIGTERM)
        while self._running:
            self.ended()
            time.sleep(POLL_SECONDS)
        self._listener.close()


def run(sweep: Sweep, names: list[str], division: Division) -> int:
    """Runs trials; returns the exit code.

    A trial that another process trains is waited for, and goes on here if that one stops.

    Raises:
      Preempted: after a signal, once every running trial is saved, or if others stopped a trial.
      StorageError: if the way a trial ended cannot be recorded.
    """
    state = lambda name: states.of(sweep.folder(name))[0]
    found = zip(names, storage.at_once(state, names), strict=True)
    failed = {name for name, each in found if each == states.FAILED}  # which are tried again
    waiting, runner = deque(names), Runner(sweep, division)
    try:
        with View(sweep) as view:
            while (waiting or not runner.is_idle()) and not (runner.received and runner.is_idle()):
                for name in list(waiting):
                    if runner.is_full():
                        break
                    if (found := state(name)) == states.RUNNING:
                        continue
                    waiting.remove(name)
                    if found not in (*states.RESULTS, states.FAILED) or name in failed:
                        runner.start(name)
                        view.started(name)
                ended = runner.over()
                # One that found another process at its trial waits for that.
                waiting.extend(name for name in ended if state(name) == states.RUNNING)
                failed -= set(ended)
                for name in ended:
                    view.ended(name)
                view.show(runner.names())
                runner.wait()
    finally:
        runner.close()
    return concluded(sweep, runner.received)


def concluded(sweep: Sweep, received: int | None) -> int:
    """Says how the trials of a sweep stand; returns the exit code.

    Raises:
      Preempted: if trials are left to be run, that nobody is running.
    """
    found = standing.read(directory.read(sweep.directory))
    for line in tables.reasons(found):
        console.say(line)
    counts = standing.counts(found)
    left = sum(counts.get(state, 0) for state in (states.PENDING, states.STOPPED))
    said = f"{len(found)} trials: {standing.in_words(counts)}"
    if received is not None or left:
        raise Preempted(f"{said}; run the same command to go on")
    console.say(said)
    return FAILED if states.FAILED in counts else 0
