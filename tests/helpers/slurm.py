"""A SLURM cluster of one node: this machine, on the loopback interface."""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.helpers.cluster import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SchedulerType=sched/builtin
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmdSpoolDir={place}/spool
StateSaveLocation={place}/state
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Installs SLURM if it is missing and this is root on Debian; else the test is skipped."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.getuid() or not shutil.which("apt-get"):
        pytest.skip(f"no SLURM, and only root on Debian can install {', '.join(PACKAGES)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for what in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-q", *what], env=env, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apt-get cannot install SLURM: {done.stderr[-300:]}")


@contextlib.contextmanager
def cluster(place: pathlib.Path) -> Iterator[dict[str, str]]:
    """Runs the daemons in a folder; yields the environment for commands of the cluster."""
    install()
    (place / "spool").mkdir(parents=True)
    (place / "state").mkdir()
    key = place / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    conf = place / "slurm.conf"
    named = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
    ports, cpus = (free_port(), free_port()), os.cpu_count()
    conf.write_text(CONF.format(**named, ports=ports, cpus=cpus, place=place))
    env = {**os.environ, "SLURM_CONF": str(conf)}
    paths = [
        f"--{name}={place}/munge.{end}" for name, end in (("socket", "socket"), ("pid-file", "pid"))
    ]
    paths += [f"--log-file={place}/munged.log", f"--seed-file={place}/munge.seed"]
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", *paths],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c"],
        ):
            output = (place / f"{command[0]}.out").open("w")
            daemons.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
            time.sleep(1)  # the next one asks it
        until = time.monotonic() + 60
        while "idle" not in asked(env, "sinfo", "--noheader", "--format=%T"):
            assert time.monotonic() < until, (place / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


def asked(env: dict[str, str], *command: str) -> str:
    """Returns the output of a command of the cluster."""
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout
