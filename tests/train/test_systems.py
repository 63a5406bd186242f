"""Every system: on several devices as on one, killed at any instant, scored and sampled."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import cli, config, kinds, sharding
from recursia.train.step import Trainer
from tests.helpers import exhaustive, slow
from tests.helpers.batches import whole_rows
from tests.helpers.kills import survives
from tests.helpers.points import DEPTHS
from tests.helpers.presets import SYSTEMS
from tests.helpers.runs import rows
from tests.helpers.tiny import error, tol

VOCAB, ROWS, LENGTH = 258, 8, 16
CUT = {  # of a shipped preset; validation and samples are the same for all, and take long
    "model.vocab_size": VOCAB, "train.num_steps": 4, "train.batch_size": ROWS,
    "train.seq_len": LENGTH, "train.loss_chunk": LENGTH, "schedule.warmup_steps": 2,
    "optimizer.clip_norm": 0.0, "checkpoint.every_steps": 1, "checkpoint.keep": 2,
    "data.validation_text": "", "data.validation_fraction": 0, "eval.every_steps": 0,
    "eval.prompts": "", "log.every_steps": 1, "log.sinks": "",
}  # fmt: skip
MESHES = [
    {"fsdp": 2},
    {"data": 2, "tensor": 2},
    {"expert": 2},
    {"context": 2},
    {"data": 2, "fsdp": 2},
    {"expert": 2, "tensor": 2},
]


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    return whole_rows(tokens, rng.uniform(size=(ROWS, LENGTH)).astype(np.float32))


def first_step(trainer):
    """Returns the gradient, as the first moment of one step, and the step's metrics."""
    state, metrics = trainer.step_function(0)(trainer.init(), trainer.put(batch()))
    has_moment = lambda leaf: hasattr(leaf, "mu")
    found = filter(has_moment, jax.tree.leaves(state.opt_state, is_leaf=has_moment))
    return jax.device_get((next(found).mu, metrics))


def assert_is_that_of_one_device(trainer, make_mesh):
    mesh = sharding.MeshConfig(data=1)
    run = dataclasses.replace(trainer.run, mesh=mesh)
    want, wanted = first_step(Trainer(run, trainer.model, make_mesh(mesh, jax.devices()[:1])))
    moments, metrics = first_step(trainer)
    assert error(moments, want) < tol(jnp.float32, 16 * ROWS * LENGTH)
    assert metrics.keys() == wanted.keys()
    for key in wanted:
        assert np.allclose(metrics[key], wanted[key], rtol=1e-4, atol=1e-6), key


def of_depth(name):
    return kinds.kind_of(config.load(name, {}).model.depth)


# Tokens at their own depth, and at one that is drawn: other tests hold other policies to meshes,
# gradients and decoding.
FIRST = {of_depth(name): name for name in reversed(SYSTEMS)}
FEW = {FIRST[kind] for kind in ("expert_choice", "recurrent")}
NAMES = [(slow if name in FEW else exhaustive)(name) for name in SYSTEMS]


@pytest.mark.parametrize("name", NAMES)
def test_every_system_lives_through_all_of_a_run(
    folder, tmp_path, monkeypatch, compiled_once, command, name
):
    """Its programs are compiled once for all of it, which takes most of the time."""
    sizes = {"data": 1, **MESHES[SYSTEMS.index(name) % len(MESHES)]}
    changed = {**CUT, "data.text": folder / "train.txt"}
    changed |= {f"mesh.{axis}": size for axis, size in sizes.items()}
    typed = [f"--config.{field}={value}" for field, value in changed.items()]
    real, count = sharding.make_mesh, np.prod(list(sizes.values()))
    on_few = lambda mesh, devices=None: real(mesh, (devices or jax.devices())[:count])
    monkeypatch.setattr(sharding, "make_mesh", on_few)

    def start(workdir):
        assert cli.main(["train", f"--config={name}", f"--workdir={workdir}", *typed]) == 0

    start(tmp_path / "unbroken")
    (trainer,) = compiled_once.values()
    assert_is_that_of_one_device(trainer, real)
    workdir = survives(start, tmp_path / "unbroken", tmp_path, 2, f"{name} on {sizes}")
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # programs for one compile sooner
    text, place = f"--text={folder / 'validation.txt'}", f"--workdir={workdir}"
    scores = json.loads(command("eval", place, text, "--num_batches=1", "--json")[0])
    assert 0 < scores["bits_per_byte"] < 9
    assert command("generate", place, "--prompt=red ", "--num_tokens=3")[0].startswith("red ")
    jax.clear_caches()


def test_the_systems_have_every_depth_policy():
    assert set(map(of_depth, SYSTEMS)) == set(DEPTHS)
