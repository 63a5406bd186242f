"""Trials at a time use CPUs and GPUs of their own."""

import os
import types

import pytest

from recursia import compiled
from recursia.errors import ConfigError
from recursia.sweep import accelerators, directory, division
from tests.helpers import trials
from tests.helpers.refusals import refused


def test_trials_side_by_side_share_no_cpu_and_one_cache(sweep, tmp_path, monkeypatch):
    cpus = division.cpus()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiled.VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(compiled.VARIABLE)
    monkeypatch.setattr(compiled, "sys", types.SimpleNamespace(modules={}))  # jax keeps its own
    if len(cpus) < 2:
        pytest.skip("one CPU")
    sweep("--jobs=2", "--threads=1")
    started = [each[0] for each in trials.starts(tmp_path / "s").values()]
    assert {tuple(each["cpus"]) for each in started} == {(cpus[0],), (cpus[1],)}
    assert {each["threads"] for each in started} == {"1"}
    assert {each["cache"] for each in started} == {str(compiled.default())}
    assert division.cpus() == cpus, "this process keeps its own"


@pytest.mark.parametrize(
    ("trials", "jobs", "threads", "expected"),
    [
        (9, None, None, (4, 1)),
        (2, None, None, (2, 2)),
        (1, None, None, (1, 4)),
        (9, None, 2, (2, 2)),
        (9, 3, None, (3, 1)),
        (9, 8, None, (8, 1)),
        (9, None, 8, (1, 8)),
        (0, None, None, (1, 4)),
    ],
)
def test_cpus_are_divided_and_not_shared(trials, jobs, threads, expected, monkeypatch):
    monkeypatch.setattr(division, "cpus", lambda: [3, 4, 6, 7])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = division.divided(trials, jobs, threads)
    number, each = found[:2]
    assert (number, each) == expected and found.gpus == 0
    given = [cpu for share in found.shares() for cpu in share.cpus]
    assert len(given) == len(set(given)) or number * each > 4
    monkeypatch.setenv("JAX_PLATFORMS", "another")
    assert division.divided(trials, jobs, threads).jobs == (jobs or 1)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lets this machine have GPUs, which JAX may use."""
    monkeypatch.setattr(accelerators, "has_tpu", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.delenv(accelerators.VISIBLE, raising=False)

    def make(listed, named=None):
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
        accelerators._listed.cache_clear()
        if named is not None:
            monkeypatch.setenv(accelerators.VISIBLE, named)

    yield make
    accelerators._listed.cache_clear()


def listed(count):
    return "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i}f)\n" for i in range(count))


MIG = "GPU 0: A100 (UUID: GPU-a)\n  MIG 1g.5gb  Device  0: (UUID: MIG-x)\n"
MIG += "  MIG 1g.5gb  Device  1: (UUID: MIG-y)\nGPU 1: A100 (UUID: GPU-b)\n"


@pytest.mark.parametrize(
    ("said", "named", "given", "expected"),
    [
        (listed(4), None, (9, None), ["0", "1", "2", "3"]),
        (listed(4), None, (2, None), ["0,1", "2,3"]),
        (listed(4), None, (1, None), ["0,1,2,3"]),
        (listed(4), None, (9, 3), ["0", "1", "2"]),
        (listed(4), "2, GPU-7", (9, None), ["2", "GPU-7"]),
        (listed(4), "3,-1,0", (9, None), ["3"]),
        (listed(4), "", (9, None), [None]),
        (listed(4), None, (9, None, None, 2), ["0,1", "2,3"]),
        (listed(4), None, (9, None, None, 0), [None]),
        (listed(4), None, (9, 2, None, 0), [None, None]),
        (MIG, None, (9, None), ["MIG-x", "MIG-y", "1"]),
        ("", None, (9, None), [None]),
    ],
)
def test_gpus_are_divided_and_not_shared(said, named, given, expected, machine):
    """Those that the environment names, else those that nvidia-smi lists."""
    machine(said, named)
    shares = division.divided(*given, *[None] * (3 - len(given))).shares()
    assert [each.variables().get(accelerators.VISIBLE) for each in shares] == expected


@pytest.mark.parametrize("jobs", [None, 2])
def test_trials_at_a_time_see_other_gpus(jobs, sweep, tmp_path, machine):
    machine(listed(2))
    number = () if jobs is None else (f"--jobs={jobs}",)
    _, said = sweep(*number)
    assert "3 trials, 2 at a time on " in said and " and 1 GPU each" in said
    seen = {each[0]["gpus"] for each in trials.starts(tmp_path / "s").values()}
    assert seen == {"0", "1"}
    assert directory.read(tmp_path / "s").how["gpus"] == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--jobs=3",), ["--jobs=3", "3 GPUs", "2 are here"]),
        (("--jobs=2", "--gpus=2"), ["need 4 GPUs", "2 are here"]),
        (("--gpus=3",), ["need 3 GPUs", "2 are here"]),
        (("--gpus=-1",), ["--gpus", "'-1'"]),
    ],
)
def test_more_gpus_than_there_are_is_one_line(arguments, parts, machine, tmp_path, refused_command):
    machine(listed(2))
    config = trials.write(tmp_path, trials.THREE)
    where = f"--workdir={tmp_path / 's'}"
    refused_command("sweep", f"--config={config}", where, *arguments, parts=parts)
    assert not (tmp_path / "s").exists()


def test_gpus_that_are_not_there_and_chips_of_a_tpu_are_one_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with refused(ConfigError, "--gpus=1", "no GPU here"):
        division.divided(9, None, None, 1)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    with refused(ConfigError, "--jobs=2", "TPU chips", "--jobs=1"):
        division.divided(9, 2, None)
    assert division.divided(9, None, None).jobs == 1
