"""Trials on a cluster: an array of SLURM, or a JobSet of Kubernetes for each trial.

`submissions/N.json` says what is sent, from before it is sent. What is still there is asked of the
engine by the names of the jobs, so that no trial is sent twice, wherever a submission was stopped.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from recursia import buckets, console, jsonfile, settings, storage
from recursia.errors import CheckpointError, ConfigError, StorageError, UserError
from recursia.launch import checks, machine_options, machines
from recursia.launch.job import Job
from recursia.launch.targets.target import Target
from recursia.workdir import place

SUBMISSIONS, LOGS = "submissions", "logs"  # folders of a sweep's directory
DIGITS = 8  # of the part of a name that tells sweeps apart
Commands = Mapping[str, tuple[str, ...]]  # arguments of `recursia` by what they are called


@dataclasses.dataclass(frozen=True)
class Submission:
    """What was sent at once.

    Attributes:
      name: of the job.
      tasks: what its commands are called, in their order: names of trials, or of workers.
      job: number that SLURM gave it; "" if it is not known, or has none.
    """

    name: str
    tasks: tuple[str, ...]
    job: str = ""


class Engine:
    """Sends commands to a target, and asks it for them.

    Attributes:
      TITLE: of the target.
    """

    TITLE: ClassVar[str]

    def __init__(self, given: argparse.Namespace, directory: pathlib.Path):
        """Reads the options of the target.

        Args:
          given: what was typed.
          directory: of the sweep.

        Raises:
          ConfigError: for a wrong option.
        """
        machine_options.check_lines(given)
        self._given, self.directory = given, directory.absolute()
        with self._named():
            self._target = self._adapted(machine_options.target(self.TITLE, given))

    def _adapted(self, target: Target) -> Target:
        """Returns the target as sweeps use it."""
        return target

    def submissions(self, commands: Commands) -> list[Submission]:
        """Returns what has to be sent for some commands."""
        raise NotImplementedError

    def active(self, before: list[Submission]) -> set[str]:
        """Returns which tasks of earlier submissions are queued or running."""
        raise NotImplementedError

    def prepared(
        self, commands: Commands, runs: list[tuple[str, settings.Run]]
    ) -> list[tuple[Submission, Job]]:
        """Returns what has to be sent, and the jobs.

        Args:
          commands: at least one.
          runs: configurations of the trials, by their names.

        Raises:
          ConfigError: if the target cannot start them, or its hosts would not see their files.
        """
        where, found = self._machines([run for _, run in runs]), []
        for each in self.submissions(commands):
            listed = tuple(commands[task] for task in each.tasks)
            check_words(listed)
            job = machine_options.job(self._given, each.name, listed, where)
            with self._named():
                self._target.check(job)
            found.append((each, job))
        shared = found[0][1].shared
        venv = found[0][1].venv if shared else ""
        for config, run in runs:
            file = machine_options.file(config)[0]
            places = {"workdir": str(self.directory), "config": file, "venv": venv}
            checks.check_places(run, self.TITLE, shared, **places)
            if where.per_host:
                checks.check_mesh(run, where)
        return found

    def _machines(self, runs: list[settings.Run]) -> machines.Machines:
        topologies = {self._given.topology or run.topology for run in runs}
        if len(topologies) > 1 or not all(topologies):
            named = ", ".join(sorted(filter(None, topologies))) or "none"
            raise ConfigError(
                f"--runner={self.TITLE}: the topologies of the trials are {named}; give --topology"
            )
        return machines.read(topologies.pop())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Calls the target by the option that chose it here."""
        try:
            yield
        except UserError as error:
            error.args = (str(error).replace("--target=", "--runner="),)
            raise

    def script(self, job: Job) -> str:
        """Returns the script that sends a job."""
        return self._target.script(job)

    def send(self, prepared: list[tuple[Submission, Job]]) -> None:
        """Sends jobs; raises what `Target.submit` raises."""
        for submission, job in prepared:
            path = self._record(submission)
            script = self._again(submission) + self.script(job)
            with self._named():
                said = self._target.sent(script, output=subprocess.PIPE)
            number = re.findall(r"\bjob (\d+)", said)[-1:] if self.TITLE == "slurm" else []
            submission = dataclasses.replace(submission, job="".join(number))
            self._record(submission, path)
            count = len(submission.tasks)
            console.say(f"sent {submission.name}: {count} command{'s' * (count > 1)}{_as(number)}")

    def _again(self, submission: Submission) -> str:
        """Returns a script that makes room for a job that was sent before, and has ended."""
        return ""

    def _record(self, submission: Submission, path: pathlib.Path | None = None) -> pathlib.Path:
        path = path or self.directory / SUBMISSIONS / f"{len(sent(self.directory))}.json"
        contents = json.dumps(dataclasses.asdict(submission)) + "\n"
        try:
            place.of(path).put(path, contents.encode())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from None
        return path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others from sending trials of the same sweep meanwhile.

        Raises:
          ConfigError: if another process is sending some.
        """
        folder = self.directory / SUBMISSIONS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = place.of(folder).lock(folder, console.say)
        except CheckpointError:
            raise ConfigError(
                f"--workdir={self.directory}: another process is sending its trials; none is sent "
                "twice; give the command again when that has ended"
            ) from None
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror})") from None
        with contextlib.closing(held):
            yield

    def left(self, commands: Commands) -> Commands:
        """Returns the commands that are neither queued nor running; says how many are."""
        before = sent(self.directory)
        active = self.active(before) if before else set()
        if kept := [task for task in commands if task in active]:
            console.say(f"{len(kept)} of {len(commands)} are queued or running by an earlier job")
        return {task: command for task, command in commands.items() if task not in active}

    def _name(self, length: int, *of: str) -> str:
        digest = hashlib.sha256("\n".join([str(self.directory), *of]).encode()).hexdigest()
        return f"{self._target.legal(self.directory.name)[:length].strip('-')}-{digest[:DIGITS]}"

    def _asked(self, *command: str) -> str:
        """Returns the output of a command of the engine; raises ConfigError if it fails."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            last = (getattr(error, "stderr", "") or str(error)).strip().split("\n")[-1]
            raise ConfigError(
                f"--runner={self.TITLE}: {command[0]} does not say which jobs there are, and none "
                f"is sent twice: {last}"
            ) from None
        return done.stdout


class Array(Engine):
    """An array job of SLURM; its logs are in the sweep's directory."""

    TITLE = "slurm"

    def _adapted(self, target: Any) -> Target:
        if target.logs or buckets.is_place(self.directory):  # where SLURM writes none
            return target
        return dataclasses.replace(target, logs=str(self.directory / LOGS))

    def submissions(self, commands: Commands) -> list[Submission]:
        """See `Engine.submissions`; all are one array."""
        name = f"{self._name(30)}-{len(sent(self.directory))}"
        return [Submission(name, tuple(commands))] if commands else []

    def send(self, prepared: list[tuple[Submission, Job]]) -> None:
        """See `Engine.send`."""
        if not buckets.is_place(self.directory):
            (self.directory / LOGS).mkdir(parents=True, exist_ok=True)
        super().send(prepared)

    def active(self, before: list[Submission]) -> set[str]:
        """See `Engine.active`; a job of one command is no array, and has no index."""
        tasks = {each.name: each.tasks for each in before}
        names = f"--name={','.join(tasks)}"
        rows = self._asked("squeue", "--noheader", "--array", "--format=%j %K", names).split("\n")
        return {
            tasks[name][int(index) if index.isdecimal() else 0]
            for name, _, index in (row.strip().partition(" ") for row in rows if row.strip())
        }


class JobSets(Engine):
    """A JobSet for each command."""

    TITLE = "gke"

    def submissions(self, commands: Commands) -> list[Submission]:
        """See `Engine.submissions`."""
        return [Submission(self._name(25, task), (task,)) for task in commands]

    def active(self, before: list[Submission]) -> set[str]:
        """See `Engine.active`; a set that has ended has a terminal state."""
        states = dict(self._states())
        return {each.tasks[0] for each in before if states.get(each.name) == ""}

    def _states(self) -> Iterator[tuple[str, str]]:
        """Yields the names of all sets with their terminal states, "" without."""
        form = r'{range .items[*]}{.metadata.name}{" "}{.status.terminalState}{"\n"}{end}'
        space = f"--namespace={getattr(self._target, 'namespace')}"  # noqa: B009 - of Gke
        for row in self._asked(
            "kubectl", "get", "jobsets", space, f"--output=jsonpath={form}"
        ).split("\n"):
            name, _, state = row.partition(" ")
            yield name, state.strip()

    def _again(self, submission: Submission) -> str:
        if all(each.name != submission.name for each in sent(self.directory)[:-1]):
            return ""
        space = f"--namespace={getattr(self._target, 'namespace')}"  # noqa: B009 - of Gke
        return f"kubectl delete jobset {submission.name} {space} --ignore-not-found\n"


ENGINES: dict[str, type[Engine]] = {engine.TITLE: engine for engine in (Array, JobSets)}


def check_words(commands: Iterable[tuple[str, ...]]) -> None:
    """Checks that scripts can hold commands: every word is printable text of one line."""
    for word in (word for command in commands for word in command):
        if not word.isprintable():
            raise ConfigError(f"{word!r}: takes one line of printable text")


def _submission(path: pathlib.Path) -> Submission:
    try:
        row = jsonfile.read(path)
        name, job, tasks = row["name"], row["job"], tuple(row["tasks"])
        if not all(isinstance(each, str) for each in (name, job, *tasks)):
            raise ValueError("its name, job and tasks are not all text")
        return Submission(name, tasks, job)
    except StorageError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None


def _as(number: list[str]) -> str:
    return f" as job {number[0]}" if number else ""


def jobs(directory: pathlib.Path) -> dict[str, str]:
    """Returns the job of each trial that was sent last: of SLURM a number, else the job's name."""
    found = {}
    for each in sent(directory):
        for index, task in enumerate(each.tasks):
            of = f"{each.job}_{index}" if len(each.tasks) > 1 else each.job
            found[task] = of if each.job else each.name
    return found


def sent(directory: pathlib.Path) -> list[Submission]:
    """Returns the submissions of a sweep so far, in their order."""
    found = (directory / SUBMISSIONS).glob("*.json")
    paths = [path for path in found if re.fullmatch("[0-9]{1,9}", path.stem)]
    return storage.at_once(_submission, sorted(paths, key=lambda path: int(path.stem)))
