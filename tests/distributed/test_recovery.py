"""Several processes take the same step, wherever it was saved and whatever became of the last."""

import contextlib
import fcntl
import json
import os
import shutil

import jax
import numpy as np
import pytest

from recursia import sharding
from recursia.train import opening
from recursia.train.step import Trainer
from recursia.workdir import directory, lock
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers import cluster, exhaustive
from tests.helpers.cluster import SECTIONS, alone, train
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

pytestmark = pytest.mark.slow
# Restores, and writes the whole of every array and of the next batch instead of training on.
RESTORED = """
import os, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from recursia import cli
from recursia.train import loop

def run_from(self, state, start):
    batch = self.trainer.put(self.parts.loader.batch(start))
    state, batch = multihost_utils.process_allgather((state, batch), tiled=True)
    if jax.process_index() == 0:
        np.savez(os.environ["RESTORED"], *map(np.asarray, jax.tree.leaves(state)), **batch)

loop.Loop.run_from = run_from
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery")
    write_text(folder)
    write_config(folder / "fixed.py", values(folder, "fixed", **SECTIONS))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The directory of a run of two processes."""
    cluster.run(folder / "output", train(folder, folder / "run"), count=2)
    return folder / "run"


SAVED = [((1, 8), (2, 1)), ((2, 1), (2, 4))]
SAVED += [exhaustive((1, 1), (2, 4)), exhaustive((2, 4), (2, 1))]


@pytest.mark.parametrize(("saver", "reader"), SAVED)
def test_what_some_processes_save_others_restore(folder, tmp_path, monkeypatch, saver, reader):
    """Processes and their devices; one process restores on 1, 2, 4 and 8."""
    wide, longer = "--config.train.batch_size=8", "--config.train.num_steps=6"
    count, devices = saver
    if count == 1:
        alone(monkeypatch, devices, train(folder, tmp_path / "saved", wide))
    else:
        output, saves = tmp_path / "output", train(folder, tmp_path / "saved", wide)
        cluster.run(output, saves, count=count, devices=devices)
    expected = sorted(leaf.tobytes() for leaf in state_of(tmp_path / "saved", 4).values())
    run = directory.recorded(tmp_path / "saved")
    (count, devices), written = reader, tmp_path / "restored.npz"
    monkeypatch.setenv("RESTORED", str(written))
    scripts = dict.fromkeys(range(count), RESTORED)
    shutil.copytree(tmp_path / "saved", tmp_path / "read")
    reads = train(folder, tmp_path / "read", wide, longer)
    cluster.run(tmp_path / "output", reads, count=count, devices=devices, scripts=scripts)
    with np.load(written) as found:
        arrays = dict(found)
    data = str(tmp_path / "saved" / "data")
    for count in (1, 2, 4, 8):
        mesh = sharding.make_mesh(run.mesh, jax.devices()[:count])
        loader = opening.load(run, (data,), mesh)
        trainer = Trainer(run, run.model.sized(loader.vocab_size), mesh)
        for name, whole in loader.batch(4).items():
            assert arrays[name].tobytes() == np.asarray(whole).tobytes()
        with contextlib.closing(Checkpoints(tmp_path / "saved" / "checkpoints")) as checkpoints:
            state = jax.device_get(checkpoints.restore(4, trainer.abstract()))
        assert sorted(leaf.tobytes() for leaf in jax.tree.leaves(state)) == expected
    restored = [x.tobytes() for name, x in arrays.items() if name.startswith("arr_")]
    assert sorted(restored) == expected


def test_a_damaged_step_is_set_aside_once_and_all_take_the_one_before(folder, run, tmp_path):
    shutil.copytree(run, workdir := tmp_path / "run")
    step = workdir / "checkpoints" / "4"
    for path in (step / "digests.sha256").read_text().splitlines():  # whoever reads it, sees it
        held = bytearray((name := step / path.split("  ")[1]).read_bytes())
        held[-1] ^= 1
        name.write_bytes(held)
    processes = cluster.run(tmp_path / "output", train(folder, workdir), count=2)
    said = [line for line in processes[0].said if "set aside as 4.unreadable" in line]
    assert len(said) == 1 and not any("set aside" in line for line in processes[1].said)
    assert any(f"resuming {workdir} at step 2" in line for line in processes[0].said)
    assert saved(workdir) == [2, 4] and (workdir / "checkpoints" / "4.unreadable").is_dir()
    assert rows(workdir) == rows(run) and is_equal(state_of(workdir, 4), state_of(run, 4))


def test_a_fault_that_one_process_finds_is_found_by_all(folder, run, tmp_path):
    shutil.copytree(run, workdir := tmp_path / "run")
    step = workdir / "checkpoints" / "4"
    names = sorted(
        line.split("  ")[1] for line in (step / "digests.sha256").read_text().splitlines()
    )
    (step / names[1]).write_bytes(b"")  # a file of the second process's share
    processes = cluster.run(tmp_path / "output", train(folder, workdir), count=2)
    (line,) = [line for line in processes[0].said if "set aside as 4.unreadable" in line]
    assert "by process 1" in line and saved(workdir) == [2, 4]


def test_a_second_job_is_refused_in_every_process(folder, run, tmp_path):
    shutil.copytree(run, workdir := tmp_path / "run")
    with (workdir / lock.FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"host": "here", "process": os.getpid(), "machine": "m"}, file)
        file.flush()
        started = cluster.start(tmp_path / "output", train(folder, workdir), count=2)
        assert cluster.finish(started) == [5, 5]
    assert f"process {os.getpid()} on here trains there" in started[0].said[-1]
    assert "could not go on" in started[1].said[-1]
