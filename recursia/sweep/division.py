"""How trials at a time divide the CPUs and GPUs of this machine."""

import dataclasses
import os
from typing import NamedTuple

from recursia.errors import ConfigError
from recursia.sweep import accelerators


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process uses; nothing leaves the choice to the system.

    Attributes:
      cpus: by their numbers.
      gpus: as `CUDA_VISIBLE_DEVICES` names them.
    """

    cpus: tuple[int, ...]
    gpus: tuple[str, ...] = ()

    def variables(self) -> dict[str, str]:
        """Returns variables that make thread pools as large as the share, and hide other GPUs."""
        count = str(len(self.cpus))
        threads = {"NPROC": count, "OMP_NUM_THREADS": count} if self.cpus else {}
        return threads | ({accelerators.VISIBLE: ",".join(self.gpus)} if self.gpus else {})


class Division(NamedTuple):
    """A division into equal shares.

    Attributes:
      jobs: trials at a time.
      threads: CPUs of each; 0 leaves the choice to the system.
      gpus: of each; 0 leaves all that there are to every one.
    """

    jobs: int
    threads: int
    gpus: int = 0

    def __str__(self) -> str:
        words = [f"{self.threads} CPU" + "s" * (self.threads > 1)]
        words += [f"{self.gpus} GPU" + "s" * (self.gpus > 1)] * (self.gpus > 0)
        return f"{self.jobs} at a time on {' and '.join(words)} each"

    def shares(self) -> list[Share]:
        """Returns a share for each trial; CPUs are in several if there are too few."""
        known, found = cpus(), accelerators.gpus()
        at = lambda job: (known[(job * self.threads + i) % len(known)] for i in range(self.threads))
        of = lambda job: found[job * self.gpus : (job + 1) * self.gpus]
        return [Share(tuple(dict.fromkeys(at(job))), tuple(of(job))) for job in range(self.jobs)]


def cpus() -> list[int]:
    """Returns the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def divided(
    num_trials: int, jobs: int | None, threads: int | None, gpus: int | None = None
) -> Division:
    """Returns how trials divide this machine, so that no two use the same CPU or GPU.

    Args:
      num_trials: that are to run.
      jobs: as typed; None for as many as there are GPUs, or as there are CPUs where JAX may use
        nothing else; for one where there may be another accelerator.
      threads: as typed; None divides the CPUs among the jobs.
      gpus: as typed; None divides the GPUs among the jobs.

    Raises:
      ConfigError: if there are too few GPUs, or if TPU chips would have to be divided.
    """
    num_cpus, found = len(cpus()), len(accelerators.gpus())
    if gpus and not found:
        raise ConfigError(f"--gpus={gpus}: there is no GPU here that JAX may use; give --gpus=0")
    if jobs is None:
        most = num_cpus // (threads or 1) if accelerators.is_cpu() else 1
        if found and gpus != 0:
            most = found // (gpus or 1)
        jobs = max(1, min(num_trials, most))
    if jobs > 1 and accelerators.has_tpu():
        raise ConfigError(
            f"--jobs={jobs}: a trial takes all TPU chips of a host, which are not divided; give "
            "--jobs=1"
        )
    needed = jobs * (1 if gpus is None else gpus)
    if found and needed > found:
        raise ConfigError(
            f"--jobs={jobs}: {jobs} at a time need {needed} GPUs, and {found} are here; give fewer "
            "--jobs or --gpus, or --gpus=0, with which all use the same"
        )
    threads = max(1, num_cpus // jobs) if threads is None else threads
    return Division(jobs, threads, found // jobs if gpus is None else gpus)
