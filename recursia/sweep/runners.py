"""A sweep from its declaration to its end, by the runner that was typed."""

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from recursia import config, console, settings, storage
from recursia.sweep import (
    adaptive,
    declaration,
    directory,
    division,
    engines,
    local,
    options,
    states,
)
from recursia.sweep.declaration import Declaration
from recursia.sweep.directory import Sweep
from recursia.sweep.division import Division
from recursia.sweep.engines import Commands
from recursia.sweep.trial import Trial


def begin(given: argparse.Namespace, declared: Declaration) -> int:
    """Writes a declaration and runs it; returns the exit code.

    Raises:
      UserError: for what cannot be run; nothing was written or sent then.
    """
    options.remember(given, _recorded(given.workdir))
    trials = _to_run(given, declared.trials)
    if given.runner == options.LOCAL:  # a trial goes on with as many of both, to the same bits
        found = _divided(given, declared.search.num_trials if declared.search else len(trials))
        given.threads, given.gpus = found.threads, found.gpus or given.gpus
    plan = Plan(given, trials, declared.config, declared.overrides, declared.search is not None)
    if given.dry_run:
        return plan.print(is_dry=True)
    plan.check()
    for name in directory.write(given.workdir, declared, options.how(given)):
        console.say(f"trial {name} is no longer declared; it is left as it is")
    return plan.go()


def resume(given: argparse.Namespace) -> int:
    """Runs what of a sweep has no result yet; returns the exit code."""
    sweep = directory.read(given.workdir)
    options.remember(given, sweep.how)
    trials = _to_run(given, sweep.all())
    plan = Plan(given, trials, sweep.config, sweep.overrides, sweep.is_search)
    return plan.print(is_dry=True) if given.dry_run else plan.go()


class Plan:
    """What is to be run, and by what."""

    def __init__(
        self,
        given: argparse.Namespace,
        trials: list[Trial],
        config: str,
        overrides: dict[str, str],
        is_search: bool,
    ):
        """Reads the options of the runner.

        Args:
          given: what was typed.
          trials: that are to be run.
          config: the file that declares the sweep.
          overrides: that were typed, for all trials.
          is_search: whether trials are suggested one after another.
        """
        self._given, self._trials, self._is_search = given, trials, is_search
        self._config, self._overrides, self._place = config, overrides, given.workdir
        engine = engines.ENGINES.get(given.runner)
        self._engine = engine(given, self._place) if engine else None

    def check(self) -> None:
        """Checks that the runner takes the trials; raises ConfigError if it does not."""
        commands = self._commands()
        if self._engine is None and self._given.runner != options.LOCAL:
            engines.check_words(commands.values())
        elif self._engine is not None and commands:
            self._engine.prepared(commands, self._runs())

    def go(self) -> int:
        """Runs the trials or sends them; returns the exit code."""
        if self._given.runner == options.LOCAL:
            return self._here(directory.read(self._place))
        if self._engine is None:
            return self.print(is_dry=False)
        with self._engine.alone():
            if left := self._engine.left(self._commands()):
                self._engine.send(self._engine.prepared(left, self._runs()))
            else:
                console.say("there is nothing to send")
        return 0

    def print(self, is_dry: bool) -> int:
        """Prints the commands, one a line, or what an engine would be sent; returns 0."""
        commands = self._commands()
        if self._engine is None:
            for command in commands.values():
                print(shlex.join(["recursia", *command]))
        elif commands:
            for _, job in self._engine.prepared(commands, self._runs()):
                print(self._engine.script(job), end="")
        return 0

    def _here(self, sweep: Sweep) -> int:
        if self._is_search:
            declared = declaration.read(self._config, self._overrides)
            number = declared.search.num_trials if declared.search else 0
            found = _divided(self._given, number)
            return adaptive.run(sweep, declared, found, self._given.retry_failed)
        found = _divided(self._given, len(self._trials))
        if self._trials:
            console.say(f"running {len(self._trials)} trials, {found}")
        return local.run(sweep, [trial.name for trial in self._trials], found)

    def _commands(self) -> Commands:
        """Returns the commands by the names of trials, or of workers that search."""
        place = self._place.absolute()
        if not self._is_search:
            of = lambda trial: trial.command(str(place / directory.TRIALS / trial.name))
            return {trial.name: of(trial) for trial in self._trials}
        worker = ("sweep", "resume", f"--workdir={place}", f"--runner={options.LOCAL}", "--jobs=1")
        return {f"worker {i}": worker for i in range(self._given.jobs or 1)}

    def _runs(self) -> list[tuple[str, settings.Run]]:
        if self._is_search:
            return [(self._config, config.load(self._config, self._overrides))]
        return [(trial.config, trial.run()) for trial in self._trials]


def _divided(given: argparse.Namespace, num_trials: int) -> Division:
    return division.divided(num_trials, given.jobs, given.threads, given.gpus)


def _to_run(given: argparse.Namespace, trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials without a result, and without those that failed unless they are wanted."""
    skipped = (*states.RESULTS, *(() if given.retry_failed else (states.FAILED,)))
    folder = lambda trial: given.workdir / directory.TRIALS / trial.name
    found = storage.at_once(lambda trial: states.of(folder(trial))[0], trials)
    return [trial for trial, state in zip(trials, found, strict=True) if state not in skipped]


def _recorded(place: pathlib.Path) -> dict[str, Any]:
    return directory.read(place).how if (place / directory.SWEEP).exists() else {}
