"""A state that is saved on some devices is restored on any others, equal to the bit."""

import contextlib

import jax
import numpy as np
import pytest

from recursia import sharding
from recursia.train.step import Trainer
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers.runs import tiny_run
from tests.helpers.trainers import FOLDER

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


def test_the_meshes_split_what_they_say(trainers):
    for count, trainer in trainers.items():
        assert trainer.mesh.size == count
        table = trainer.abstract().params["embed"]["table"]
        parts = np.prod(table.shape) / np.prod(table.sharding.shard_shape(table.shape))
        assert parts == (1 if count == 1 else count // trainer.run.mesh.sizes["data"])
