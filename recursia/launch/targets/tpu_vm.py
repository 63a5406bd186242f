"""Cloud TPU virtual machines: a queued resource whose hosts run the command when they start."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import ClassVar

from recursia.errors import ConfigError
from recursia.launch.job import SETTLED, Job
from recursia.launch.targets.target import WORD, Target, wrapped

_WAIT = 60  # seconds between two looks at a queued resource
_STOP = 300  # seconds that a container may take to save
_FAILURES = 5  # of the looks in a row, after which it counts as deleted
_PAUSE = 10  # seconds before a command starts again
# States from which a queued resource does not come back.
_LOST = ("SUSPENDED", "FAILED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm(Target):
    """A queued resource with a start-up script, which each host runs whenever it boots.

    The script starts the command again until it ends with 0 or with a code after which it would end
    alike. With `spot`, this command watches, and asks for a new resource when the old one is lost.
    The resource is not deleted at the end.

    Attributes:
      zone: zone of the TPU.
      project: "" takes that of gcloud's configuration.
      runtime_version: system of the hosts; "" takes that of the chip.
      spot: whether the TPU may be taken back at any time.
      service_account: of the hosts; "" takes the project's default.
    """

    ENGINE: ClassVar[str] = "gcloud"
    INSTALL: ClassVar[str] = "install the Google Cloud CLI"
    TAKES: ClassVar[tuple[str, ...]] = ("image", "venv")
    NAME: ClassVar[str] = r"[a-z]([a-z0-9-]{0,58}[a-z0-9])?"
    NAME_IN_WORDS: ClassVar[str] = "a DNS label: a-z, 0-9 and '-', from a letter, at most 60"
    NAMES: ClassVar[Mapping[str, tuple[str, str]]] = dict.fromkeys(
        ("zone", "project", "runtime_version", "service_account"), WORD
    )

    zone: str
    project: str = ""
    runtime_version: str = ""
    spot: bool = False
    service_account: str = ""

    def check(self, job: Job) -> None:
        """See `Target.check`."""
        super().check(job)
        if not job.machines.is_tpu:
            raise self.refuse_machines(job, "TPU slices, such as v5e:16x16")
        if not (job.image or job.venv):
            raise ConfigError("--target=tpu-vm: needs --image=IMAGE, or --venv=DIR on its hosts")
        if job.seconds:
            raise ConfigError("--hours: tpu-vm has no time limit; leave it out")

    def script(self, job: Job) -> str:
        """See `Target.script`."""
        lines = [
            "set -eu",
            f"boot=$(cat <<'END'\n{_boot(job).rstrip()}\nEND\n)",
            "create() {",
            wrapped(self._create(job), "  "),
            "}",
            "create",
        ]
        return "\n".join([*lines, *(self._watch(job) if self.spot else [])]) + "\n"

    def _create(self, job: Job) -> list[str]:
        machines, slices = job.machines, job.machines.slices
        nodes = [f"--node-count={slices}", f"--node-prefix={job.name}"]
        options = [
            *(nodes if slices > 1 else [f"--node-id={job.name}"]),
            f"--accelerator-type={machines.cloud_type}",
            f"--runtime-version={self.runtime_version or machines.cloud_system}",
            *(["--spot"] if self.spot else []),
            *([f"--service-account={self.service_account}"] if self.service_account else []),
        ]
        from_file = '--metadata-from-file=startup-script=<(printf "%s" "$boot")'
        return [*self._gcloud("create", job, *options), from_file]

    def _gcloud(self, verb: str, job: Job, *options: str) -> list[str]:
        command = ["gcloud", "compute", "tpus", "queued-resources", verb, job.name]
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return [shlex.quote(word) for word in (*command, *where, *options)]

    def _watch(self, job: Job) -> list[str]:
        """Returns lines that ask for another resource when one is lost, until it is deleted."""
        look = self._gcloud("describe", job, "--format=value(state.state)")
        look[-1] += "); then failures=0; else failures=$((failures + 1)) state=; fi"
        return [
            "restarts=0 failures=0",
            f"while [ $failures -lt {_FAILURES} ]; do",
            wrapped(["if", f"state=$({look[0]}", *look[1:]], "  "),
            f'  case "$state" in {"|".join(_LOST)})',
            f"    [ $restarts -lt {job.max_restarts} ] || exit 1",
            "    restarts=$((restarts + 1))",
            wrapped(self._gcloud("delete", job, "--force", "--quiet"), "    "),
            "    create ;;",
            "  esac",
            f"  sleep {_WAIT}",
            "done",
        ]


def _boot(job: Job) -> str:
    """Returns the start-up script of a host."""
    codes = "|".join(map(str, (0, *SETTLED)))
    return "\n".join(
        [
            "#!/bin/bash",
            f"exec >>/var/log/{job.name}.log 2>&1",
            *([] if job.image else job.exports()),
            f"for restart in $(seq 0 {job.max_restarts}); do",
            wrapped(_contained(job) if job.image else job.words(), "  "),
            "  code=$?",
            f'  echo "recursia ended with $code, restart $restart of {job.max_restarts}"',
            f"  case $code in {codes}) break ;; esac",
            f"  sleep {_PAUSE}",
            "done",
            "",
        ]
    )


def _contained(job: Job) -> list[str]:
    """Returns the command in a container, which sees the chips and the host's network."""
    options = [
        *("--rm", "--privileged", "--net=host", f"--stop-timeout={_STOP}"),
        *(f"--volume={folder}:{folder}" for folder in job.shared),
        *(f"--env={name}={value}" for name, value in job.environment.items()),
        job.image,
    ]
    return ["docker", "run", *map(shlex.quote, options), *job.words()]
