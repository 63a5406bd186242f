"""The base class of targets."""

import dataclasses
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import ClassVar

from recursia.errors import ConfigError, UserError
from recursia.launch.job import Job


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What starts a job on its hosts. Fields are settings, typed as `--target.NAME=VALUE`.

    Attributes:
      ENGINE: the program that takes the job; "" for none.
      INSTALL: where a user gets that program.
      IS_HERE: whether the only host is this machine, whose folders need not be shared.
      TAKES: which of "image" and "venv" the target can start.
      NAME, NAME_IN_WORDS: what a job may be called.
      NAMES: of settings that name something there, the pattern and what it takes in words.
    """

    ENGINE: ClassVar[str] = ""
    INSTALL: ClassVar[str] = ""
    IS_HERE: ClassVar[bool] = False
    TAKES: ClassVar[tuple[str, ...]] = ("venv",)
    NAME: ClassVar[str] = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
    NAME_IN_WORDS: ClassVar[str] = "letters, digits, '.', '_' and '-', at most 64"
    NAMES: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @classmethod
    def title(cls) -> str:
        """Returns the name as it is typed: of the module, or the dotted path of a user's class."""
        package, _, name = cls.__module__.rpartition(".")
        is_ours = package == Target.__module__.rpartition(".")[0]
        return name.replace("_", "-") if is_ours else f"{cls.__module__}.{cls.__qualname__}"

    def check(self, job: Job) -> None:
        """Checks that the target can start a job.

        Raises:
          ConfigError: if it cannot.
        """
        title, given = self.title(), {"image": job.image, "venv": job.venv}
        if not re.fullmatch(self.NAME, job.name):
            raise ConfigError(
                f"--name={job.name}: for {title} takes {self.NAME_IN_WORDS}; such as "
                f"--name={self.legal(job.name)}"
            )
        for what, value in given.items():
            if value and what not in self.TAKES:
                raise ConfigError(
                    f"--{what}={value}: {title} starts no {what}; give --{self.TAKES[0]}"
                )
        if re.search(r"\s", job.image):
            raise ConfigError(f"--image={job.image}: takes the name of an image, without spaces")
        for name, (pattern, words) in self.NAMES.items():
            if (value := getattr(self, name)) and not re.fullmatch(pattern, value):
                raise ConfigError(f"--target.{name}={value}: takes {words}")
        if all(given.values()):
            raise ConfigError(f"--image={job.image}, --venv={job.venv}: give one of the two")
        if len(job.commands) > 1:
            raise ConfigError(f"--target={title}: starts one command, got {len(job.commands)}")

    def legal(self, name: str) -> str:
        """Returns a name like the given one that the target takes."""
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:30].strip("-")
        return name or "run"

    def script(self, job: Job) -> str:
        """Returns the shell script that submits a job, as `--dry_run` prints it."""
        raise NotImplementedError

    def submit(self, job: Job) -> int:
        """Submits a job; returns the exit code, 0 if the engine took it.

        Raises:
          ConfigError: if the engine is not installed.
          UserError: if it did not take the job.
        """
        self.sent(self.script(job))
        return 0

    def sent(self, script: str, *, output: int | None = None) -> str:
        """Runs a script that uses the engine; returns what it printed, if `output` is a pipe.

        Raises:
          ConfigError: if the engine is not installed.
          UserError: if the script failed.
        """
        if shutil.which(self.ENGINE) is None:
            raise ConfigError(
                f"--target={self.title()}: no {self.ENGINE} on the PATH; {self.INSTALL}, or give "
                "--dry_run to see what would be sent"
            )
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
            file.write(script)  # which may be longer than an argument can be
            file.flush()
            done = subprocess.run(["bash", file.name], stdout=output, text=True)
        if done.returncode:
            error = UserError(
                f"--target={self.title()}: {self.ENGINE} ended with {done.returncode}; see its "
                "output"
            )
            error.exit_code = 1
            raise error
        return done.stdout or ""

    def refuse_machines(self, job: Job, takes: str) -> ConfigError:
        """Returns the error of machines that the target cannot start."""
        given = job.machines.topology or "this machine"
        return ConfigError(f"--topology={given}: {self.title()} starts {takes}")


# What clusters and clouds call things: nothing that a shell or a header would take apart.
WORD = r"[A-Za-z0-9][A-Za-z0-9._@:/+-]*", "letters, digits and . _ @ : / + -"


def wrapped(words: Sequence[str], indent: str = "") -> str:
    """Returns a command for a shell, of words that are quoted, in lines of at most 96 columns."""
    lines = [indent]
    for word in words:
        if lines[-1].strip() and len(lines[-1]) + len(word) > 94:
            lines[-1] += " \\"
            lines.append(f"{indent}  ")
        lines[-1] += f" {word}" if lines[-1].strip() else word
    return "\n".join(lines)


def document(command: str, text: str) -> str:
    """Returns a line of shell that runs a command with a document on its standard input."""
    return f"{command} <<'END'\n{text.rstrip()}\nEND\n"
