"""Jobs to render, and the targets that take them."""

from recursia.launch import machines
from recursia.launch.job import Job
from recursia.launch.targets.gke import Gke
from recursia.launch.targets.local import Local
from recursia.launch.targets.skypilot import SkyPilot
from recursia.launch.targets.slurm import Slurm
from recursia.launch.targets.tpu_vm import TpuVm

COMMAND = (
    "train",
    "--config=mor:tiny",
    "--config.eval.prompts=it's $(odd),two",
    "--workdir=gs://b/r",
)
ENVIRONMENT = {"XLA_FLAGS": "--a=1 --b='$HOME'"}


def job(topology: str, **how) -> Job:
    given = {"name": "pretrain", "commands": (COMMAND,), "environment": ENVIRONMENT, "restarts": 9}
    where = machines.read(topology) if topology else machines.HERE
    return Job(**{**given, "machines": where, **how})


# A target and a job for each file of tests/launch/golden.
CASES = {
    "local": (Local(processes=2), job("", venv="/env")),
    "slurm": (Slurm(partition="gpu", account="me"), job("h100:8x2", venv="/s/env", seconds=43200)),
    "slurm_array": (
        Slurm(cpus=4, logs="/s/logs"),
        job("cpu:1", commands=(COMMAND, ("train", "--config=mor:tiny", "--workdir=/s/b"))),
    ),
    "gke_tpu": (
        Gke(queue="tpus", cluster="pod", spot=True),
        job("v5e:16x16", image="image:1", seconds=3600),
    ),
    "gke_gpu": (
        Gke(queue="gpus", namespace="team", volume="claim", service_account="trainer"),
        job("h100:8x2", image="image:1", shared=("/shared",)),
    ),
    "tpu_vm": (TpuVm(zone="us-east5-a", project="p"), job("v6e:2x4", venv="/env")),
    "tpu_vm_spot": (
        TpuVm(zone="us-east5-a", spot=True, service_account="trainer"),
        job("v5p:4x8x8:2", image="image:1"),
    ),
    "skypilot": (SkyPilot(setup="pip install recursia"), job("h100:8x2", restarts=None)),
    "skypilot_tpu": (
        SkyPilot(infra="gcp", spot=True),
        job("v5p:4x8x8", image="image:1", restarts=None),
    ),
}
