"""What a terminal shows while trials run; a log gets lines."""

import contextlib
import time
from typing import Any

from recursia import buckets, console, storage
from recursia.sweep import standing, states, tables
from recursia.sweep.directory import Sweep
from recursia.sweep.standing import Standing

EVERY = 1.0  # seconds between two looks
LOGGED = 60.0  # the same, where each look is a line
FAR = 10.0  # the same, where to look is to ask a bucket
MOST = 20  # rows of the table on a terminal


class View:
    """A table that is drawn again and again, as a context."""

    def __init__(self, sweep: Sweep):
        """Reads how all trials stand."""
        self._sweep, self._looked = sweep, -FAR
        self._every = FAR if buckets.is_place(sweep.directory) else EVERY
        if not console.is_live():
            self._every, self._looked = LOGGED, time.monotonic()
        self._known = {each.name: each for each in standing.read(sweep)}
        self._live: Any = None

    def __enter__(self) -> "View":
        if console.is_live():
            import rich.console
            import rich.live

            terminal = rich.console.Console(stderr=True)
            self._live = rich.live.Live(console=terminal, auto_refresh=False, transient=True)
            with contextlib.suppress(OSError):
                self._live.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.__exit__(None, None, None)

    def started(self, name: str) -> None:
        """Says that a trial starts."""
        step = self._known[name].step if name in self._known else 0
        from_ = f" from about step {step}" if step else ""
        self._say(f"trial {name}: starts{from_}  {self._about(name)}".rstrip())

    def ended(self, name: str) -> None:
        """Says how a trial ended."""
        found = self._read(name)
        loss = found.validation_loss
        score = f", validation loss {loss:.4f}" if loss is not None else ""
        self._say(f"trial {name}: {found.state} at step {found.step}{score}")

    def show(self, running: list[str]) -> None:
        """Draws the table or says how far trials are, if the last look is long enough ago."""
        if time.monotonic() - self._looked < self._every:
            return
        self._looked = time.monotonic()
        shown = storage.at_once(self._read, running)
        if self._live is None:
            for each in shown:
                self._say(_progress(each))
            return
        left = [each for each in self._known.values() if each.name not in running]
        left = [each for each in left if each.state != states.PENDING][: max(MOST - len(shown), 0)]
        names = [each.name for each in (*shown, *left)]
        trials = storage.at_once(self._sweep.trial, names)
        table = tables.standings(list(zip(trials, (*shown, *left), strict=True)))
        table.caption = standing.in_words(standing.counts(self._known.values()))
        with contextlib.suppress(OSError):
            self._live.update(table, refresh=True)

    def _read(self, name: str) -> Standing:
        self._known[name] = standing.of(name, self._sweep.folder(name))
        return self._known[name]

    def _about(self, name: str) -> str:
        trial = self._sweep.trial(name)
        named = trial.labels or trial.overrides
        return " ".join(f"{key}={value}" for key, value in named.items())

    def _say(self, line: str) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            console.say(line)


def _progress(trial: Standing) -> str:
    of = f" of {trial.num_steps}" if trial.num_steps else ""
    loss = "" if trial.loss is None else f", loss {trial.loss:.4f}"
    return f"trial {trial.name}: at step {trial.step}{of}{loss}"
