"""A run of several processes is the run of one process with as many devices."""

import json
import shutil

import numpy as np
import pytest

from recursia import cli
from recursia.workdir import digests
from tests.helpers import cluster, exhaustive, slow
from tests.helpers.cluster import SECTIONS, STEPS, alone, train
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

# Sums of four devices come in another order: losses of 64 tokens in float32, after a few updates.
CLOSE = {"rtol": 64**0.5 * np.finfo(np.float32).eps * 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_text(folder)
    for depth in ("fixed", "expert_choice"):
        write_config(folder / f"{depth}.py", values(folder, depth, **SECTIONS))
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """The directory of a run of two processes with a device each, that split every parameter."""
    processes = cluster.run(folder / "output", train(folder, folder / "two"), count=2)
    spoken = [[line for line in p.said if "seconds  init" in line] for p in processes]
    assert [len(lines) for lines in spoken] == [1, 0]
    return folder / "two"


@pytest.mark.slow
def test_two_processes_equal_one_bit_for_bit(folder, two, tmp_path, monkeypatch):
    # Of two terms every sum is the same in any order.
    alone(monkeypatch, 2, train(folder, tmp_path))
    assert rows(two) == rows(tmp_path)
    assert rows(two, "samples.jsonl") == rows(tmp_path, "samples.jsonl")
    assert saved(two) == saved(tmp_path) == [2, 4]
    assert all(digests.check(two / "checkpoints" / str(step)) for step in saved(two))
    assert is_equal(state_of(two, STEPS), state_of(tmp_path, STEPS))
    assert not list(two.glob(".writable*"))


def assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and mine["step"] == other["step"]
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], **CLOSE, atol=1e-6, err_msg=name)


@pytest.mark.exhaustive
def test_four_processes_equal_one_with_four_devices(folder, tmp_path, monkeypatch):
    """Rows and parameters split by two each; `fsdp` by four is the next test but one."""
    split, how = ["--config.mesh.data=2", "--config.mesh.fsdp=2"], {"depth": "expert_choice"}
    ours = train(folder, tmp_path / "four", *split, **how)
    cluster.run(tmp_path / "output", ours, count=4)
    alone(monkeypatch, 4, train(folder, tmp_path / "one", *split, **how))
    assert_close(rows(tmp_path / "four"), rows(tmp_path / "one"))
    assert saved(tmp_path / "four") == [2, 4]


@pytest.mark.parametrize("axis", [slow("context"), exhaustive("tensor")])
def test_processes_that_hold_the_same_rows_read_the_same(folder, tmp_path, monkeypatch, axis):
    split = ["--config.mesh.fsdp=1", f"--config.mesh.{axis}=2"]
    split += ["--config.model.vocab_size=258", "--config.model.block.num_kv_heads=2"]  # that divide
    cluster.run(tmp_path / "output", train(folder, tmp_path / "two", *split), count=2)
    alone(monkeypatch, 2, train(folder, tmp_path / "one", *split))
    assert_close(rows(tmp_path / "two"), rows(tmp_path / "one"))


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_another_number_of_processes(folder, two, tmp_path, monkeypatch):
    longer, found = ("--config.train.num_steps=6", "--config.checkpoint.every_steps=0"), {}
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        shutil.copytree(two, workdir)
        if count == 1:
            alone(monkeypatch, 1, train(folder, workdir, *longer))
        else:
            output = tmp_path / "output" / str(count)
            done = cluster.run(output, train(folder, workdir, *longer), count=count)
            assert any(f"resuming {workdir} at step 4" in line for line in done[0].said)
        found[count] = rows(workdir)
        assert found[count][: len(rows(two))] == rows(two)
        assert saved(workdir)[-1] == 6
    assert_close(found[1], found[2])
    assert_close(found[4], found[2])


@pytest.mark.slow
def test_evaluation_by_two_processes_equals_that_by_one(two, tmp_path, capsys):
    command = ["eval", f"--workdir={two}", "--json"]
    first, second = cluster.run(tmp_path, command, count=2)
    assert cli.main(command) == 0
    theirs = capsys.readouterr().out
    found = [line for line in first.said if line.startswith("{")]
    assert not any(line.startswith("{") for line in second.said)
    ours, theirs = (json.loads(text) for text in (*found, theirs))
    for name in ("step", "tokens", "nats_per_token", "bits_per_byte", "mean_depth"):
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)
