"""`recursia compile`: what it prints, what it refuses, and that presets fit their machines."""

import json
import os
import subprocess
import sys

import jax
import pytest

from recursia import cli, config, topology
from recursia.errors import ConfigError
from recursia.preflight import ladder, program, render
from recursia.train.step import Trainer
from tests.helpers import slow
from tests.helpers.refusals import assert_one_line, refused

FIXED_KEYS = (
    "fits bytes_per_chip hbm_bytes_per_chip flops_per_step collectives "
    "roofline_seconds_per_step tokens_per_second"
).split()


# A plain one, which compiles in seconds; others: test_presets_fit.py.
@pytest.mark.parametrize("name", ["albert:tiny", slow("mor:tiny")])
def test_the_smallest_presets_fit_the_machine_they_are_meant_for(command, tmp_path, name):
    path = tmp_path / "report.json"
    command("compile", f"--config={name}", f"--output={path}")
    run, said = config.load(name, {}), json.loads(path.read_text())
    assert set(FIXED_KEYS) <= set(said)
    assert said["topology"] == run.topology and said["fits"]
    assert said["bytes_per_chip"] == sum(said["memory"].values()) < said["hbm_bytes_per_chip"]
    assert said["roofline_seconds_per_step"] == max(
        said["roofline"][part] for part in ("compute", "memory", "network")
    )
    tokens = run.train.batch_size * run.train.seq_len
    assert said["tokens_per_second"] == pytest.approx(tokens / said["roofline_seconds_per_step"])
    assert said["flops_per_step"] <= said["executed_flops_per_step"]
    assert said["collectives"] == []  # one chip moves nothing
    assert said["tokens"] == tokens * run.train.num_steps
    assert "fits in" in render.full("it", said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=vanilla:tiny", "--topology=v9:2x2"], "no 'v9'"),
        (["--config=vanilla:tiny", "--topology=v5e:3x5"], "no such slice"),
        (["--config=vanilla:tiny", "--topology=v5e"], "no such slice"),
        (["--config=vanilla:tiny", "--topology=h100:none"], "takes the GPUs of a node"),
        (["--config=vanilla:tiny", "--topology=v5e:4x4"], "8 sequences at a time do not divide"),
        (["--config=vanilla:tiny", "--config.mesh.fsdp=3"], "does not make 1 devices"),
        (["--config=vanilla:tiny", "--config.topology=", "--decode"], "names no topology"),
        (["--config=vanilla:none"], "no preset"),
        (["--config=vanilla:tiny", "--search", "--decode"], "give one of the two"),
        (["--config=vanilla:tiny", "--tries=2"], "--tries=2: programs of a search"),
        (["--config=vanilla:tiny", "--output=none/such/r.json"], "no folder none/such"),
        (["--config=vanilla:tiny", "--output=."], "is a folder"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, words):
    _, err = command("compile", *arguments, code=2)
    assert_one_line(err, words)


@pytest.mark.parametrize(
    ("module", "machine"), [("libtpu", "v5e:1x1"), ("jax_plugins.xla_cuda13", "h100:8")]
)
def test_a_compiler_that_is_not_installed_is_named(command, monkeypatch, module, machine):
    monkeypatch.setitem(sys.modules, module, None)
    typed = ("compile", "--config=vanilla:tiny", f"--topology={machine}")
    assert_one_line(command(*typed, code=2)[1], "pip install")


class Failing:
    """A lowered program that does not compile."""

    def __init__(self, text):
        self.text = text

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self.text)


def test_what_the_compiler_has_no_memory_for_is_told_with_what_to_change(command, monkeypatch):
    """The compiler's own message, without compiling: the run is what is too large."""
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (49.02G) exceeds available HBM (15.75G)."
    )

    monkeypatch.setattr(Trainer, "lower", lambda self, step=0: Failing(text))
    big = [
        "--config.train.batch_size=64",
        "--config.train.seq_len=1024",
        "--config.train.remat=none",
    ]
    out, _ = command("compile", "--config=vanilla:tiny", *big, code=1)
    assert "does not fit: needs 52.63 GB of 16.91 GB per chip" in out
    assert "--config.train.num_microbatches=" in out and "--config.train.remat=block" in out


def test_another_failure_of_the_compiler_is_one_line(command, monkeypatch):
    monkeypatch.setattr(Trainer, "lower", lambda self, step=0: Failing("INTERNAL: some\nthing"))
    _, err = command("compile", "--config=vanilla:tiny", code=1)
    assert_one_line(err, "INTERNAL: some thing")


def test_the_parameters_of_a_teacher_take_memory(tmp_path):
    theirs = config.load("recursive:tiny", {})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(theirs)))
    few = {"train.batch_size": "1", "train.seq_len": "16", "distill.teacher": str(tmp_path)}
    made = program.make_trainer(config.load("vanilla:tiny", few), jax.devices()[:1])
    arguments = program.train_step(made, 0).memory.arguments
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in made.abstract_batch().values())
    number = 4  # of the step, int32
    assert arguments == program.local_bytes(made.teacher.params) + batch + number
    none = {**few, "distill.teacher": str(tmp_path / "none")}
    with refused(ConfigError, "config.distill.teacher", "none"):
        program.make_trainer(config.load("vanilla:tiny", none), jax.devices()[:1])


def test_advice_is_the_next_rungs_each_of_another_kind():
    run = config.load("recursive:tiny", {"train.batch_size": "64", "mesh.data": "-1"})
    told = [each["overrides"] for each in ladder.advice(run, topology.devices("v5e:2x2"))]
    assert told[0] == "--config.train.remat=block"
    assert "num_microbatches=2" in told[1] and "--config.mesh." in told[2]


@pytest.mark.slow
def test_several_processes_compile_at_once():
    code = (
        "import jax; from recursia import topology; d = topology.devices('v5e:2x2')[0]; "
        "s = jax.sharding.SingleDeviceSharding(d); "
        "x = jax.ShapeDtypeStruct((8, 128), 'float32', sharding=s); "
        "jax.jit(lambda x: x @ x.T).lower(x).compile(); print('compiled')"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for run in runs:
        out, error = run.communicate(timeout=300)
        assert (run.returncode, out.strip()) == (0, "compiled"), error


@pytest.mark.parametrize(("found", "platform"), [([], "cpu"), (["/dev/accel0"], None)])
def test_no_device_is_looked_for_where_there_is_none(monkeypatch, found, platform):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cli.sys, "platform", "linux")
    monkeypatch.setattr(cli.glob, "iglob", lambda pattern: iter(found))
    cli._quiet()
    assert os.environ.pop("JAX_PLATFORMS", None) == platform


def test_the_platform_that_is_asked_for_stays(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(cli.glob, "iglob", lambda pattern: iter(()))
    cli._quiet()
    assert os.environ["JAX_PLATFORMS"] == "cuda"
