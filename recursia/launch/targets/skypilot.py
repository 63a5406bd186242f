"""SkyPilot: a task that its managed jobs start, and start again elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from recursia.errors import ConfigError
from recursia.launch.job import PORT, RESUMABLE, Job
from recursia.launch.machines import Machines
from recursia.launch.targets.target import Target

_GPUS = {"a100": "A100-80GB", "h100": "H100", "h200": "H200"}
_FIRST = f'--coordinator="$(head -n1 <<<"$SKYPILOT_NODE_IPS"):{PORT}"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkyPilot(Target):
    """A managed job, which SkyPilot starts again when its machines are lost or its run was saved.

    Attributes:
      infra: where the machines are, such as "gcp/us-east5" or "k8s"; "" lets SkyPilot choose.
      spot: whether the machines may be taken back at any time.
      setup: a shell command that each host runs first, such as one that installs recursia.
    """

    ENGINE: ClassVar[str] = "sky"
    INSTALL: ClassVar[str] = "pip install skypilot in an environment of its own"
    TAKES: ClassVar[tuple[str, ...]] = ("image", "venv")
    NAME: ClassVar[str] = r"[A-Za-z]([A-Za-z0-9-]{0,38}[A-Za-z0-9])?"
    NAME_IN_WORDS: ClassVar[str] = "letters, digits and '-', from a letter, at most 40"
    NAMES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "infra": (r"\S+", "a place without spaces, such as gcp/us-east5")
    }

    infra: str = ""
    spot: bool = False
    setup: str = ""

    def check(self, job: Job) -> None:
        """See `Target.check`."""
        super().check(job)
        if not job.machines.per_host or job.machines.slices > 1:
            raise self.refuse_machines(job, "one TPU slice (v5e:16x16) or GPUs (h100:8x2)")
        if not (job.image or job.venv or self.setup):
            raise ConfigError(
                "--target=skypilot: needs --image=IMAGE, --venv=DIR, or --target.setup=COMMAND "
                "that installs recursia"
            )
        if job.restarts is not None:
            raise ConfigError(
                f"--restarts={job.restarts}: skypilot starts a saved run again without limit; "
                "leave it out"
            )
        if job.seconds:
            raise ConfigError("--hours: skypilot has no time limit; leave it out")

    def script(self, job: Job) -> str:
        """See `Target.script`."""
        text = yaml.safe_dump(self.task(job), sort_keys=False, width=1000)
        file = f"{job.name}.yaml"
        written = f"folder=$(mktemp -d)\ncat >\"$folder/{file}\" <<'END'\n{text.rstrip()}\nEND\n"
        sent = f'sky jobs launch --yes --detach-run --name={job.name} "$folder/{file}"\n'
        return f'set -eu\n{written}{sent}rm -r "$folder"\n'

    def task(self, job: Job) -> dict[str, Any]:
        """Returns the task."""
        task: dict[str, Any] = {
            "name": job.name,
            "num_nodes": 1 if job.machines.is_tpu else job.machines.hosts,
            "resources": self._resources(job),
            "envs": dict(job.environment),
            "setup": self.setup,
            "run": " ".join([*job.words(), *_joined(job.machines)]),
        }
        return {name: value for name, value in task.items() if value}

    def _resources(self, job: Job) -> dict[str, Any]:
        recovery = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [RESUMABLE]}
        resources: dict[str, Any] = {
            "infra": self.infra,
            "accelerators": accelerators(job.machines),
            "accelerator_args": _arguments(job.machines),
            "use_spot": self.spot,
            "image_id": f"docker:{job.image}" if job.image else "",
            "job_recovery": recovery,
        }
        return {name: value for name, value in resources.items() if value}


def accelerators(machines: Machines) -> str:
    """Returns the chips of a node as SkyPilot names them."""
    if machines.is_tpu:
        return f"tpu-{machines.cloud_type}"
    return f"{_GPUS[machines.chip]}:{machines.per_host}"


def _arguments(machines: Machines) -> dict[str, str]:
    """Returns what a TPU host runs."""
    return {"runtime_version": machines.cloud_system} if machines.is_tpu else {}


def _joined(machines: Machines) -> list[str]:
    """Returns the flags that join GPU hosts; TPU hosts find each other."""
    if machines.is_tpu or machines.hosts == 1:
        return []
    return [_FIRST, f"--num_processes={machines.hosts}", '--process_id="$SKYPILOT_NODE_RANK"']
