"""`recursia launch`: what it sends, and what it refuses before anything is sent."""

import json
import os
import shlex

import pytest

from recursia import compiled, config
from recursia.launch import checks
from recursia.preflight import kept
from tests.helpers.runs import values, write_config, write_text

GKE = ("--target=gke", "--target.queue=tpus", "--image=image:1")
BUCKET = ("--config=vanilla:tiny", "--workdir=gs://bucket/runs/it")
SLURM = ("--target=slurm", "--topology=cpu:2", "--config=vanilla:tiny")
FITS = {
    "fits": True,
    "bytes_per_chip": 1,
    "hbm_bytes_per_chip": 2,
    "tokens_per_second": 2e6,
    "serial_tokens_per_second": 1e6,
}


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch):
    """Programs that keep what they are given, in a folder that is the whole PATH; none at first."""
    for name in ("bash", "cat", "sh"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = next(f for f in (f"/bin/{name}", f"/usr/bin/{name}") if os.path.exists(f))
        (tmp_path / "bin" / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "compiled"))

    def add(name, code=0):
        path = tmp_path / "bin" / name
        path.write_text(
            f'#!/bin/sh\necho "$0 $*" >{tmp_path}/sent\ncat >>{tmp_path}/sent\nexit {code}'
        )
        path.chmod(0o755)

    return add


@pytest.fixture
def examined(monkeypatch):
    """Reports instead of compiled programs, counted."""
    made = []

    def compile(run, name, on):
        made.append(on)
        return dict(FITS)

    monkeypatch.setattr(checks, "_compile", compile)
    return made


def test_what_is_sent_is_what_a_dry_run_prints(command, engines, examined, tmp_path):
    engines("kubectl")
    shown, said = command("launch", *GKE, *BUCKET, "--dry_run")
    assert "not compiled for v5e:1x1 yet" in said and not (tmp_path / "sent").exists()
    command("launch", *GKE, *BUCKET)
    first, *document = (tmp_path / "sent").read_text().splitlines()
    assert first.endswith("kubectl apply --namespace=default --filename=-")
    assert document == shown.splitlines()[1:-1]


def test_a_report_is_made_once_and_read_again(command, engines, examined):
    engines("kubectl")
    fits = (
        "launch: vanilla:tiny on v5e:1x1 fits in 0.00 GB of 0.00 GB per chip, 1 to 2 M tokens/s\n"
    )
    for _ in range(2):
        said = command("launch", *GKE, *BUCKET)[1]
        then = "recursia report --workdir=gs://bucket/runs/it --out=report.html"
        assert said == f"{fits}next: {then}\n"
    said = command("launch", *GKE, *BUCKET, "--dry_run")[1]
    assert said == f"{fits}next: the same without --dry_run\n"
    assert examined == ["v5e:1x1"]
    other = (*GKE, *BUCKET, "--config.train.batch_size=16")
    assert "not compiled" in command("launch", *other, "--dry_run")[1]
    said = command("launch", *other, "--no_preflight", "--dry_run")[1]
    assert said == "next: the same without --dry_run\n"


def test_what_recursia_compile_found_is_read(command, engines, examined, tmp_path):
    run = config.load("vanilla:tiny", {})
    kept.write({**FITS, "fits": False}, run, "v5e:1x1", tmp_path / "compiled")
    _, err = command("launch", *GKE, *BUCKET, code=1)
    assert err.count("\n") == 1 and "does not fit: needs 0.00 GB" in err and "--search" in err
    assert examined == []
    (path,) = (tmp_path / "compiled").glob("preflight-*")
    path.write_text("{")
    assert kept.read(run, "v5e:1x1", tmp_path / "compiled") is None
    assert kept.read(run, "v5e:1x1", None) is None


REFUSED = {
    "an unknown target": (["--target=k8s", *BUCKET], "--target=k8s: unknown; takes gke, local"),
    "a missing field": (
        ["--target=gke", "--image=i", *BUCKET],
        "--target=gke: needs --target.queue=VALUE (Kueue's LocalQueue",
    ),
    "an empty field": (
        ["--target=gke", "--target.queue=", "--image=i", *BUCKET],
        "--target=gke: needs --target.queue=VALUE",
    ),
    "no zone": (["--target=tpu-vm", "--image=i", *BUCKET], "needs --target.zone=VALUE"),
    "a field of another target": (
        [*GKE, *BUCKET, "--target.partition=x"],
        "--target.partition=x: gke has no such setting; it has queue, namespace",
    ),
    "a wrong value": ([*GKE, *BUCKET, "--target.spot=maybe"], "--target.spot=maybe: takes true"),
    "a wrong number": ([*SLURM, "--workdir=/s/r", "--target.cpus=x"], "--target.cpus: got 'x'"),
    "a local folder": ([*GKE, BUCKET[0], "--workdir=runs/x"], "--workdir=runs/x: the hosts of gke"),
    "another protocol": (
        [*GKE, BUCKET[0], "--workdir=http://b/r"],
        "--workdir: http://b/r: a bucket is",
    ),
    "no colon": (
        [*GKE, BUCKET[0], "--workdir=gs//b/r"],
        "launch: ",
        "gs//b/r: a bucket is written",
    ),
    "no folder": ([*GKE, BUCKET[0], "--workdir=gs://b"], "launch: ", "takes gs://BUCKET/FOLDER"),
    "a bucket that is shared": ([*SLURM, "--workdir=/s/r", "--shared=gs://b"], "--shared: got 'gs"),
    "no folder that is shared": ([*SLURM, "--workdir=/s/r", "--shared=,"], "takes folders, by"),
    "an environment in a bucket": ([*SLURM, "--workdir=/s/r", "--venv=gs://b/env"], "--venv: got"),
    "no environment here": (
        ["--target=local", BUCKET[0], "--workdir=runs/x", "--venv=/none"],
        "--venv=/none: has no program /none/bin/recursia",
    ),
    "no image": (["--target=gke", "--target.queue=q", *BUCKET, "--image="], "--image: is empty"),
    "no name": ([*GKE, *BUCKET, "--name="], "--name: is empty"),
    "too many restarts": ([*GKE, *BUCKET, "--restarts=1e30"], "from 0 to 2147483647"),
    "too many hours": ([*GKE, *BUCKET, "--hours=1e9"], "from 0.02 to 8760"),
    "a folder that is not shared": (
        [*SLURM, "--workdir=/here/r", "--shared=/s,/t"],
        "--workdir=/here/r: the hosts of slurm see no folder",
    ),
    "a folder beside the shared one": (
        [*SLURM, "--workdir=/shared2/r", "--shared=/shared"],
        "--workdir=/shared2/r",
    ),
    "a way out of it": ([*SLURM, "--workdir=/s/../r", "--shared=/s"], "--workdir=/s/../r"),
    "local data": (
        [*GKE, *BUCKET, "--config.data.path=data/novels"],
        "--config.data.path=",
        "/data/novels: the hosts of gke",
    ),
    "a local teacher": (
        [*GKE, *BUCKET, "--config.train.init_from=runs/a"],
        "--config.train.init_from=",
    ),
    "a local environment": (
        [*SLURM, "--workdir=/s/r", "--shared=/s", "--venv=/here/env"],
        "--venv=/here/env",
    ),
    "a name": ([*GKE, *BUCKET, "--name=It_1"], "--name=It_1: for gke takes a DNS label"),
    "a name of the folder": ([*GKE, BUCKET[0], "--workdir=gs://b/It_1"], "such as --name=it-1"),
    "a topology": ([*GKE, *BUCKET, "--topology=v5e:3x3"], "v5e has no slice 3x3"),
    "one it cannot serve": (
        ["--target=slurm", *BUCKET],
        "--topology=v5e:1x1: slurm starts hosts with GPUs",
    ),
    "a mesh": ([*GKE, *BUCKET, "--topology=v5e:4x4"], "8 sequences at a time do not divide"),
    "an override": ([*GKE, *BUCKET, "--config.train.num_stps=3"], "did you mean 'num_steps'?"),
    "a configuration": ([*GKE, "--config=vanila:tiny", BUCKET[1]], "no file vanila.py"),
    "a variable": ([*GKE, *BUCKET, "--env=A-B=1"], "--env=A-B=1: takes NAME=VALUE"),
    "a variable without a value": ([*GKE, *BUCKET, "--env=AB"], "--env=AB: takes NAME=VALUE"),
    "a variable twice": ([*GKE, *BUCKET, "--env=A=1", "--env=A=2"], "--env=A: given as 1 and as 2"),
    "lines": ([*GKE, *BUCKET, "--env=A=1\n2"], "--env: takes one line"),
    "a line in a path": ([*GKE, BUCKET[0], "--workdir=gs://b/a\nb"], "--workdir: takes one line"),
    "a line in a setting": ([*GKE, *BUCKET, "--target.cluster=a\nb"], "--target.cluster: takes"),
    "a line in an override": ([*GKE, *BUCKET, "--config.train.init_from=a\nb"], "init_from: takes"),
    "shared here": (
        ["--target=local", *BUCKET, "--shared=/s"],
        "--shared=/s: local is this machine",
    ),
    "no engine": ([*GKE, *BUCKET, "--no_preflight"], "no kubectl on the PATH", "--dry_run"),
    "no cluster": ([*SLURM, "--workdir=s3://b/r"], "no sbatch on the PATH", "login node"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_nothing_is_sent(refused_command, examined, tmp_path, name):
    typed, *parts = REFUSED[name]
    refused_command("launch", *typed, parts=parts)
    assert not (tmp_path / "sent").exists() and examined == []


def test_a_folder_here_may_have_any_name(command):
    typed = ["--target=local", BUCKET[0], "--workdir=runs/it's été", "--dry_run"]
    (word,) = (w for w in shlex.split(command("launch", *typed)[0]) if w.startswith("--workdir"))
    assert word == "--workdir=runs/it's été"


def test_an_engine_that_fails_is_one_line(command, engines, tmp_path):
    engines("sbatch", code=3)
    _, err = command("launch", *SLURM, "--workdir=s3://b/r", code=1)
    assert err == "recursia: --target=slurm: sbatch ended with 3; see its output\n"


def test_a_file_and_folders_are_named_so_that_every_host_finds_them(command, tmp_path, monkeypatch):
    write_text(tmp_path)
    write_config(tmp_path / "tiny.py", values(tmp_path))
    monkeypatch.chdir(tmp_path)
    typed = ["--target=slurm", "--topology=cpu:2", "--config=tiny.py:tiny", "--workdir=runs/a"]
    typed += [f"--shared={tmp_path}", "--config.train.init_from=runs/b", "--venv=env", "--dry_run"]
    text = command("launch", *typed)[0].replace(" \\\n  ", " ")
    assert (
        f"srun {tmp_path}/env/bin/recursia train --config={tmp_path}/tiny.py:tiny "
        f"--config.train.init_from={tmp_path}/runs/b --workdir={tmp_path}/runs/a\n"
    ) in text
    run = config.to_dict(config.load("vanilla:tiny", {}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(run))
    typed = [*SLURM[:2], "--config=old", "--workdir=gs://b/r", "--dry_run"]
    _, said = command("launch", *typed, code=2)
    assert said.startswith("recursia: --config=old: the hosts of slurm see no folder")
    text = command("launch", *typed, f"--shared={tmp_path}")[0].replace(" \\\n  ", " ")
    assert f"srun recursia train --config={tmp_path}/old --workdir=gs://b/r\n" in text


def test_a_report_depends_on_what_the_program_depends_on(tmp_path, monkeypatch):
    run = config.load("vanilla:tiny", {})
    kept.write(dict(FITS), run, "v5e:1x1", tmp_path)
    read = lambda changed, on="v5e:1x1": kept.read(
        config.load("vanilla:tiny", changed), on, tmp_path
    )
    assert read({}) == json.loads(json.dumps(FITS))
    assert read({"checkpoint.keep": "7", "data.seed": "1", "log.every_steps": "3"}) == FITS
    assert read({"train.seq_len": "64"}) is None and read({"block.mlp_dim": "64"}) is None
    assert read({"mesh.fsdp": "1"}) == FITS and read({"data.tokenizer": "bpe:300"}) is None
    assert read({}, "v5e:2x2") is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert read({}) is None
