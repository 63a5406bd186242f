"""A run that is killed at any instant and started again ends where the unbroken one ends."""

import dataclasses
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from recursia import config, kinds, sharding
from recursia.train import loop, opening
from tests.helpers.kills import KILLED, Kill
from tests.helpers.points import DEPTHS
from tests.helpers.presets import SYSTEMS
from tests.helpers.runs import command, differences, saved, train

SEED = random.SystemRandom().randrange(1 << 32)  # a failure says it, to be put here
CUT = {  # of a shipped preset; validation and samples are the same for all, and take long
    "model.vocab_size": 258, "train.num_steps": 4, "train.batch_size": 8, "train.seq_len": 16,
    "train.loss_chunk": 16, "schedule.warmup_steps": 2, "checkpoint.every_steps": 1,
    "checkpoint.keep": 2, "data.validation_text": [], "data.validation_fraction": 0,
    "eval.every_steps": 0, "eval.prompts": [], "log.every_steps": 1, "log.tensorboard": False,
}  # fmt: skip
MESHES = [
    {"data": 1},
    {"data": 1, "fsdp": 2},
    {"data": 2, "tensor": 2},
    {"data": 1, "expert": 2},
    {"data": 1, "context": 2},
]


@pytest.fixture
def compiled_once(monkeypatch):
    """Keeps the trainer of equal runs, with what it has compiled, from one start to the next."""
    real, made = opening.Trainer, {}

    def trainer(run, model, mesh, teacher):
        key = dataclasses.replace(run, data=None), model, mesh
        return made[key] if key in made else made.setdefault(key, real(run, model, mesh, teacher))

    monkeypatch.setattr(opening, "Trainer", trainer)


def survives(start, unbroken, folder, count, about):
    """Kills a run again and again, each time from what the last kill left.

    Args:
      start: trains in a directory to the end.
      unbroken: the directory of a run that nothing stopped.
      folder: for the directories.
      count: of kills.
      about: the run, in words.
    """
    rng, history = np.random.default_rng(SEED), []
    workdir, last = folder / "0", saved(unbroken)[-1]
    try:
        for number in range(count):
            kill = Kill(workdir, folder / str(number + 1), rng)
            with kill.struck():
                start(workdir)
            assert not differences(workdir, unbroken, last)
            is_over = last in saved(kill.copy)
            shutil.rmtree(workdir)
            # One that was killed at its end has little left to be killed in.
            history = [] if is_over else [*history, f"{kill.at}, steps {saved(kill.copy)}"]
            workdir = folder / "0" if is_over else kill.copy
        start(workdir)
        assert not differences(workdir, unbroken, last)
    except Exception as error:
        error.add_note(f"{about}, seed {SEED}, kill {kill.at}, after {history}")
        raise


@pytest.mark.parametrize("count", [18, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_instant_ends_where_the_unbroken_one_does(
    folder, unbroken, tmp_path, compiled_once, count
):
    quiet = "--config.log.tensorboard=false"

    def start(workdir):
        assert train(folder, workdir, quiet) == 0

    survives(start, unbroken, tmp_path, count, "expert choice")


def test_a_process_killed_for_real_leaves_the_same(folder, unbroken, tmp_path):
    rng, codes = random.Random(SEED), []
    for most in (180, 120):  # an unbroken run has 200 operations
        number = rng.randrange(most)
        script = [sys.executable, "-c", KILLED, str(number), str(tmp_path)]
        done = subprocess.run([*script, *command(folder, tmp_path)], capture_output=True, text=True)
        codes.append((number, done.returncode, saved(tmp_path)))
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    assert codes[0][1] == -signal.SIGKILL
    assert train(folder, tmp_path) == 0
    wrong = differences(tmp_path, unbroken)
    assert not wrong, f"seed {SEED}: differs in {wrong} after {codes}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_run_of_every_system_killed_at_any_instant_ends_where_the_unbroken_one_does(
    folder, tmp_path, monkeypatch, compiled_once, name
):
    changed = {**CUT, "data.text": folder / "train.txt"}
    run = config.load(name, {field: str(value) for field, value in changed.items()})
    sizes = MESHES[SYSTEMS.index(name) % len(MESHES)]
    run = dataclasses.replace(run, mesh=sharding.MeshConfig(**sizes))
    real, count = sharding.make_mesh, np.prod(list(sizes.values()))
    monkeypatch.setattr(sharding, "make_mesh", lambda mesh: real(mesh, jax.devices()[:count]))
    start = lambda workdir: loop.train(run, workdir, {})
    start(tmp_path / "unbroken")
    survives(start, tmp_path / "unbroken", tmp_path, 4, f"{name} on {sizes}")


def test_the_systems_have_every_depth_policy():
    found = {kinds.kind_of(config.load(name, {}).model.depth) for name in SYSTEMS}
    assert found == set(DEPTHS)
