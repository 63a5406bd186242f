"""SLURM: a batch script for `sbatch`, queued again after a signal to stop."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import ClassVar

from recursia.errors import ConfigError
from recursia.launch.job import RESUMABLE, Job
from recursia.launch.targets.target import WORD, Target, document, wrapped

_EARLY = 60  # seconds by which SLURM may send a signal before its time
_GRACE = 65535  # seconds that it takes at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(Target):
    """A batch job with one task on each host, which has all GPUs of the host.

    Attributes:
      partition: partition of the cluster; "" takes its default.
      account: account that is charged; "" takes the user's default.
      qos: quality of service; "" takes the default.
      cpus: CPUs of a task; 0 asks for none.
      grace: seconds between the signal to stop and the time limit, that of `--hours` or of the
        partition.
      logs: folder of the output on the cluster; "" is the folder of submission.
    """

    ENGINE: ClassVar[str] = "sbatch"
    INSTALL: ClassVar[str] = "submit from a login node of the cluster"
    NAMES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "partition": (rf"{WORD[0]}(,{WORD[0]})*", f"{WORD[1]}; several by commas"),
        "account": WORD,
        "qos": WORD,
        "logs": (r"[^\\]+", "a folder without backslashes, which sbatch drops"),
    }

    partition: str = ""
    account: str = ""
    qos: str = ""
    cpus: int = 0
    grace: int = 300
    logs: str = ""

    def check(self, job: Job) -> None:
        """See `Target.check`; several commands are an array."""
        super().check(dataclasses.replace(job, commands=job.commands[:1]))
        if job.machines.is_tpu:
            raise self.refuse_machines(job, "hosts with GPUs (h100:8x2) or without (cpu:2)")
        if not 1 <= self.grace <= _GRACE:
            raise ConfigError(f"--target.grace={self.grace}: takes seconds from 1 to {_GRACE}")
        if job.seconds and job.seconds <= self.grace + _EARLY:
            raise ConfigError(
                f"--hours={job.seconds / 3600:.3g}: of {job.seconds} seconds, --target.grace="
                f"{self.grace} and the minute by which SLURM may be early leave none to train, and "
                "the job would be queued again and again; give more hours, or less grace"
            )

    def script(self, job: Job) -> str:
        """See `Target.script`."""
        lines = ["#!/bin/bash", *self._requests(job), "", *self._variables(job), *_command(job)]
        return document("sbatch", "\n".join([*lines, *_ending(job)]))

    def _requests(self, job: Job) -> list[str]:
        machines, is_array = job.machines, len(job.commands) > 1
        log = f"{job.name}-%A_%a.log" if is_array else f"{job.name}-%j.log"
        options = {
            "job-name": job.name,
            "array": f"0-{len(job.commands) - 1}" if is_array else "",
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": machines.hosts,
            "ntasks-per-node": 1,
            "gpus-per-node": machines.per_host,
            "cpus-per-task": self.cpus,
            "time": _clock(job.seconds) if job.seconds else "",
            "signal": f"USR1@{self.grace}",
            "output": f"{_folder(self.logs)}/{log}" if self.logs else log,
            "open-mode": "append",
        }
        words = {name: shlex.quote(str(value)) for name, value in options.items() if value}
        lines = [f"#SBATCH --{name}={word}" for name, word in words.items()]
        return [*lines, "#SBATCH --requeue"]

    def _variables(self, job: Job) -> list[str]:
        if job.machines.is_gpu:  # else jax takes one GPU for each task
            ids = ",".join(map(str, range(job.machines.per_host)))
            return [*job.exports(), f"export JAX_LOCAL_DEVICE_IDS={ids}"]
        return job.exports()


def _command(job: Job) -> list[str]:
    if len(job.commands) == 1:
        return [wrapped(["srun", *job.words()])]
    cases = (
        f"  {i}) srun {shlex.join([job.program, *command])} ;;"
        for i, command in enumerate(job.commands)
    )
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]


def _ending(job: Job) -> list[str]:
    """Returns what follows the command: a saved run is queued again."""
    is_left = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {job.max_restarts} ]'
    return [
        "code=$?",
        f"if [ $code -eq {RESUMABLE} ] && {is_left}; then",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
    ]


def _folder(logs: str) -> str:
    """Returns a folder as sbatch reads it, which replaces what follows a "%"."""
    return logs.rstrip("/").replace("%", "%%")


def _clock(seconds: int) -> str:
    """Returns seconds as sbatch reads them, rounded up to minutes."""
    minutes = -(-seconds // 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:00"
