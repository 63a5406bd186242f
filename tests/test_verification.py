"""Whoever reads prepared data refuses bytes that have changed, and reads whole ones once."""

import json
import shutil

import pytest

from recursia import cli
from recursia.data import verification
from recursia.data.manifest import SPLITS
from tests.helpers import runs

DATA = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run of two steps, with its data in it."""
    folder = tmp_path_factory.mktemp("verification")
    runs.write_text(folder)
    short = {"train": {"num_steps": 2, "batch_size": 8, "seq_len": 16}}
    runs.write_config(folder / "tiny.py", runs.values(folder, **short))
    assert runs.train(folder, folder / "run", "--config.log.sinks=") == 0
    return folder / "run"


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def read(monkeypatch):
    """The files whose digests are computed."""
    real, found = verification._digest, []
    spy = lambda path, advance: found.append(path.rpartition("/")[2]) or real(path, advance)
    monkeypatch.setattr(verification, "_digest", spy)
    return found


def changed(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])


READERS = {
    "eval": ("validation-00000.tokens", ["eval", "--workdir={run}", "--num_batches=1"]),
    "baselines": (
        "train-00000.documents",
        ["eval", "--workdir={run}", "--num_batches=1", "--baselines"],
    ),
    "replay": ("train-00000.tokens", ["replay", "--workdir={run}", "--step=2"]),
    "inspect": ("train-00000.tokens", ["data", "inspect", "{run}/data"]),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_changed_bytes(workdir, capsys, reader):
    name, words = READERS[reader]
    changed(workdir / "data" / name)
    assert cli.main([word.format(run=workdir) for word in words]) == DATA
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{name}: has sha256 " in line and "its bytes have changed" in line


def test_a_reader_checks_what_it_reads_once(workdir, read, capsys):
    (workdir / verification.FILE).unlink()
    changed(workdir / "data" / "train-00000.tokens")  # which evaluation does not read
    command = ["eval", f"--workdir={workdir}", "--num_batches=1"]
    assert cli.main(command) == cli.main(command) == 0
    assert read == ["validation-00000.tokens", "validation-00000.documents"]


def test_a_directory_that_cannot_be_written_is_read_again(workdir, read, capsys):
    remembered = workdir / verification.FILE
    remembered.unlink()
    remembered.with_suffix(".part").mkdir()  # as root, no file is read-only
    command = ["eval", f"--workdir={workdir}", "--num_batches=1"]
    assert cli.main(command) == cli.main(command) == 0
    assert len(read) == 4 and not remembered.exists()


def test_what_was_found_whole_is_not_read_again(workdir, read, tmp_path):
    directory, remembered = str(workdir / "data"), tmp_path / "checked.json"
    verification.checked((directory,), remembered, SPLITS)
    assert len(read) == 4
    verification.checked((directory,), remembered, SPLITS)
    assert len(read) == 4
    for broken in ("", "[" * 10_000, "[]", json.dumps({"a": 1})):
        remembered.write_text(broken)
        verification.checked((directory,), remembered, SPLITS)
    assert len(read) == 4 * 5
