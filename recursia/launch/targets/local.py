"""Processes on this machine, started again after a signal to stop."""

import dataclasses
import shlex
import shutil
import sys
from typing import ClassVar

from recursia import console
from recursia.errors import ConfigError
from recursia.launch import processes
from recursia.launch.job import PORT, RESUMABLE, Job
from recursia.launch.targets.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Target):
    """One or more processes of a run here.

    Process 0 prints as it is; lines of the others begin with their index. A signal to this command
    is passed on to all of them. After a signal to one of them, all save, end and start again.

    Attributes:
      processes: number of processes of the run.
    """

    IS_HERE: ClassVar[bool] = True
    NAME: ClassVar[str] = ".+"  # which nothing shows here

    processes: int = 1

    def check(self, job: Job) -> None:
        """See `Target.check`."""
        super().check(job)
        if self.processes < 1:
            raise ConfigError(f"--target.processes={self.processes}: takes a number from 1")
        if job.machines.topology:
            raise self.refuse_machines(job, "processes on this machine; leave --topology out")
        if job.seconds:
            raise ConfigError("--hours: local has no time limit; leave it out")

    def script(self, job: Job) -> str:
        """See `Target.script`; each start takes a free port instead of this one."""
        commands = (f"{shlex.join(command)} &" for command in self._commands(job, PORT))
        return "\n".join([*job.exports(), *commands, "wait"]) + "\n"

    def submit(self, job: Job) -> int:
        """Runs the job to its end; returns the exit code of the run.

        Raises:
          ConfigError: if the program cannot be run.
        """
        if job.venv and shutil.which(job.program) is None:
            raise ConfigError(f"--venv={job.venv}: has no program {job.program}; give another")
        run, code = processes.Processes(job.environment), RESUMABLE
        for restart in range(job.max_restarts + 1):
            if restart:
                console.say(f"launch: stopped, and saved; restart {restart} of {job.max_restarts}")
            code = run.finish(self._commands(job, processes.free_port()))
            if code != RESUMABLE or run.listener.received is not None:
                break
        run.listener.close()
        return code

    def _commands(self, job: Job, port: int) -> list[list[str]]:
        program = [job.program] if job.venv else [sys.executable, "-m", "recursia"]
        command = [*program, *job.commands[0]]
        if self.processes == 1:
            return [[*command, "--num_processes=1"]]
        joined = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={self.processes}"]
        return [[*command, *joined, f"--process_id={i}"] for i in range(self.processes)]
