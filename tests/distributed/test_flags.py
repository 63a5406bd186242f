"""Which processes make a run: by flags, by the environment, or none but this one."""

import os
import pathlib

import jax
import pytest

from recursia import distributed
from recursia.errors import ConfigError, DataError
from tests.helpers.refusals import refused

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
SLURM = dict(JOB_ID="7", STEP_NODELIST="node[1-2]", NTASKS="2", PROCID="1", LOCALID="0")
SLURM = {f"SLURM_{name}": value for name, value in SLURM.items()}
AT = "--coordinator=127.0.0.1:4000"

WRONG = [
    (AT, "--num_processes, --process_id: missing | HOST:PORT"),
    ("--num_processes=2 --process_id=0", "--coordinator: missing"),
    ("--num_processes=2", "--coordinator, --process_id: missing"),
    (f"{AT} --num_processes=0 --process_id=0", "got '0' | a number from 1"),
    (f"{AT} --num_processes=two --process_id=0", "got 'two' | a number from 1"),
    (f"{AT} --num_processes=2 --process_id=2", "0 to 1 of 2"),
    (f"{AT} --num_processes=2 --process_id=-1", "got '-1' | a number from 0"),
    ("--coordinator=host --num_processes=2 --process_id=0", "--coordinator=host | HOST:PORT"),
    ("--coordinator=host:65536 --num_processes=2 --process_id=0", "from 1 to 65535"),
]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """An environment that says nothing, in which nothing is joined."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: joined.append(how))
    return joined


@pytest.mark.parametrize(("typed", "parts"), WRONG, ids=[typed for typed, _ in WRONG])
def test_wrong_flags_are_one_line(tmp_path, refused_command, nowhere, typed, parts):
    workdir = f"--workdir={tmp_path / 'run'}"
    refused_command(
        "train", "--config=vanilla:tiny", workdir, *typed.split(), parts=parts.split(" | ")
    )
    assert not nowhere and not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", [{}, SLURM | {"SLURM_NTASKS": "1"}, {"OMPI_COMM_WORLD_SIZE": "1"}])
def test_without_flags_and_others_nothing_is_joined(monkeypatch, nowhere, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with joined(distributed.Flags()):
        assert distributed.is_alone() and distributed.is_first()
        assert distributed.everyone(7) == [7]
    assert not nowhere


def joined(flags):
    return distributed.joined(flags, is_preemptible=True, stacks=pathlib.Path("nowhere"))


OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1"}


@pytest.mark.parametrize("env", [SLURM, OMPI], ids=["SLURM", "Open MPI"])
def test_where_the_environment_says_all_jax_is_left_to_read_it(monkeypatch, nowhere, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with joined(distributed.Flags()):
        pass
    (how,) = nowhere
    assert not {"coordinator_address", "num_processes", "process_id"} & how.keys()
    with joined(distributed.Flags(num_processes=1)):
        pass
    assert len(nowhere) == 1  # alone, whatever the environment says


def test_flags_come_before_the_environment_and_loopback_stays_on_it(monkeypatch, nowhere):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    for address, bound in (("127.0.0.1:4000", True), ("node1:4000", False), ("[::1]:4000", True)):
        with joined(distributed.Flags(address, 2, 1)):
            pass
        how = nowhere.pop()
        given = (how["coordinator_address"], how["num_processes"], how["process_id"])
        assert given == (address, 2, 1)
        assert ("coordinator_bind_address" in how) == bound
        assert how["cluster_detection_method"] == "deactivate"
        assert how["initialization_timeout"] > distributed.JOIN_SECONDS


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        (KUBERNETES, ("pod 3", "pip install 'jax[k8s]'", "--num_processes=1")),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ("one of 4 processes", "--coordinator=HOST:PORT")),
    ],
    ids=["Kubernetes", "Open MPI 5"],
)
def test_an_environment_that_jax_cannot_read_is_refused(monkeypatch, nowhere, env, parts):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda _: None)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with refused(ConfigError, *parts), joined(distributed.Flags()):
        pass
    assert not nowhere


def test_a_pod_that_is_no_job_runs_alone(monkeypatch, nowhere):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with joined(distributed.Flags()):
        pass
    assert not nowhere


def test_what_jax_cannot_join_is_one_line(monkeypatch):
    def fail(**_):
        raise RuntimeError("Failed to add port\nto server")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match=r"^127.0.0.1:4000: .*Failed to add port to server"):
        with joined(distributed.Flags("127.0.0.1:4000", 2, 0)):
            pass


def test_alone_an_error_is_its_own(nowhere):
    with pytest.raises(DataError, match="shard 7"), distributed.together():
        raise DataError("shard 7")
    distributed.check_same("configuration", "0" * 64)
    assert distributed.from_first(3) == 3
