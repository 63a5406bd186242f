"""The description of a job, which every target reads."""

import dataclasses
import os
import shlex
from collections.abc import Mapping

from recursia.errors import CheckpointError, ConfigError, DataError, Diverged, Preempted
from recursia.launch import machines

RESUMABLE = Preempted.exit_code  # the run is saved, and the same command resumes it
# After these codes the same command ends alike: a person has to change something.
SETTLED = tuple(error.exit_code for error in (ConfigError, DataError, Diverged, CheckpointError))
RESTARTS = 100  # at most, by default
PORT = 8476  # at which process 0 listens on a machine of its own


@dataclasses.dataclass(frozen=True)
class Job:
    """One command on each host of some machines, and what to do when it ends.

    Attributes:
      name: of the job, where the target shows it.
      commands: arguments of `recursia`, such as ("train", "--config=..."); several are an array of
        jobs alike, of which each has machines of its own.
      machines: the hosts.
      environment: variables of the command.
      image: container image with recursia; "" runs without one.
      venv: folder of a Python environment with recursia; "" takes `recursia` from the PATH.
      shared: folders that all hosts see.
      restarts: how often the command is started again after it was stopped; None lets the target
        decide.
      seconds: of the time limit; 0 for none.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    machines: machines.Machines
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image: str = ""
    venv: str = ""
    shared: tuple[str, ...] = ()
    restarts: int | None = None
    seconds: int = 0

    @property
    def max_restarts(self) -> int:
        """Restarts at most, of targets that count them."""
        return RESTARTS if self.restarts is None else self.restarts

    @property
    def program(self) -> str:
        """The program, as its host finds it."""
        return os.path.join(self.venv, "bin", "recursia") if self.venv else "recursia"

    def words(self) -> list[str]:
        """Returns the words of the first command, quoted for a shell."""
        return [shlex.quote(word) for word in (self.program, *self.commands[0])]

    def exports(self) -> list[str]:
        """Returns lines of a shell script that set the environment."""
        return [f"export {name}={shlex.quote(v)}" for name, v in self.environment.items()]
