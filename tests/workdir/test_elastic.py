"""A run that is saved on some devices goes on upon any others.

What is restored is equal to the bit, the batches are the same, and losses differ by rounding alone.
"""

import contextlib

import jax
import numpy as np
import pytest

from recursia import sharding
from recursia.train import opening
from recursia.train.step import Trainer
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers.runs import tiny_run, write_text
from tests.helpers.trainers import FOLDER, LENGTH, ROWS, batch

MESHES = {  # by their number of devices
    1: {"data": 1},
    2: {"data": 1, "fsdp": 2},
    4: {"data": 2, "fsdp": 2},
    8: {"data": 2, "fsdp": 4},
}


def on(count):
    """Returns a trainer on so many devices."""
    run = tiny_run(FOLDER, mesh=MESHES[count])
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:count])
    return Trainer(run, run.model.sized(258), mesh)


@pytest.fixture(scope="module")
def trainers():
    return {count: on(count) for count in MESHES}


@pytest.fixture(scope="module")
def values(trainers):
    """Values of every array of the state, all of them drawn."""
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.ndim else np.array(3, x.dtype)
    return jax.tree.map(draw, trainers[1].abstract())


@pytest.mark.parametrize("count", MESHES)
def test_what_some_devices_save_all_others_restore(trainers, values, tmp_path, count):
    state = jax.tree.map(jax.device_put, values, trainers[count].state_shardings)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.finish()
        assert checkpoints.check(3)
        for trainer in trainers.values():
            found = checkpoints.restore(3, trainer.abstract())
            for leaf, saved, where in zip(
                *map(jax.tree.leaves, (found, values, trainer.state_shardings)), strict=True
            ):
                assert leaf.sharding == where
                assert np.asarray(leaf).tobytes() == saved.tobytes()


def test_every_number_of_devices_takes_the_same_batches(trainers, tmp_path):
    write_text(tmp_path)
    run = tiny_run(tmp_path)
    paths = directory.data_directories(run.data, tmp_path / "run")
    taken = []
    for trainer in trainers.values():
        with contextlib.closing(opening.load(run, paths, trainer.mesh).iterate(5)) as batches:
            rows = [jax.device_get(trainer.put(next(batches))) for _ in range(3)]
        taken.append([{name: x.tobytes() for name, x in each.items()} for each in rows])
    assert all(each == taken[0] for each in taken) and taken[0][0] != taken[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("count", MESHES)
def test_losses_on_other_devices_differ_by_rounding_alone(trainers, tmp_path, count):
    # Sums over tokens come in another order, and five updates carry that on.
    close = {"rtol": 8 * (ROWS * LENGTH) ** 0.5 * np.finfo(np.float32).eps}

    def losses(trainer, state, steps):
        found = []
        for step in steps:
            state, metrics = trainer.step_function(step)(state, trainer.put(batch(step)))
            found.append(float(metrics["loss"]))
        return state, found

    saver = trainers[count]
    state, _ = losses(saver, saver.init(), range(3))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.finish()
        _, wanted = losses(saver, state, range(3, 8))
        for other, trainer in trainers.items():
            restored = checkpoints.restore(3, trainer.abstract())
            _, found = losses(trainer, restored, range(3, 8))
            assert found == wanted if other == count else np.allclose(found, wanted, **close)
    assert len(set(wanted)) == 5


def test_the_meshes_split_what_they_say(trainers):
    for count, trainer in trainers.items():
        assert trainer.mesh.size == count
        table = trainer.abstract().params["embed"]["table"]
        parts = np.prod(table.shape) / np.prod(table.sharding.shard_shape(table.shape))
        assert parts == (1 if count == 1 else count // trainer.run.mesh.sizes["data"])
