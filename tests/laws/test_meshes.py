"""One device is eight, however the eight are laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import config, sharding
from recursia.depth import expert_choice
from recursia.errors import ConfigError
from recursia.preflight import collectives, hlo
from recursia.train.step import Trainer
from tests.helpers import exhaustive, slow
from tests.helpers.batches import whole_rows
from tests.helpers.tiny import error, tol

ROWS, LENGTH, VOCAB = 8, 16, 258
MESHES = {
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "tensor": {"data": 1, "tensor": 2},
    "fsdp context": {"fsdp": 2, "context": 4, "data": 1},
    "expert tensor": {"data": 2, "expert": 2, "tensor": 2},
    "all": {"data": 1, "fsdp": 2, "expert": 2, "context": 2},
}


@functools.cache
def settings(name, more=()):
    changed = {
        **dict(more),
        "model.vocab_size": VOCAB,
        "train.batch_size": ROWS,
        "train.seq_len": LENGTH,
        "train.loss_chunk": LENGTH,
        "optimizer.clip_norm": 0.0,
    }
    return config.load(name, {field: str(value) for field, value in changed.items()})


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    return whole_rows(tokens, rng.uniform(size=(ROWS, LENGTH)).astype(np.float32))


def trainer(name, mesh=(), more=()):
    run = settings(name, more)
    sizes = {**dict.fromkeys(sharding.AXES, 1), **dict(mesh)}
    run = dataclasses.replace(run, mesh=sharding.MeshConfig(**sizes))
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    return Trainer(run, run.model.sized(VOCAB), sharding.make_mesh(run.mesh, devices))


@functools.cache
def step(name, mesh=(), more=()):
    """Returns the gradient, as the first moment of one step, and the step's metrics."""
    made = trainer(name, mesh, more)
    state, metrics = made.step_function(0)(made.init(), made.put(batch()))
    moments = [leaf.mu for leaf in jax.tree.leaves(state.opt_state, is_leaf=has_moment) if
               has_moment(leaf)]  # fmt: skip
    return jax.device_get((moments[0], metrics))


def has_moment(leaf):
    return hasattr(leaf, "mu")


def agrees(name, mesh, more=()):
    (moments, metrics) = step(name, tuple(MESHES[mesh].items()), more)
    want, wanted = step(name, (), more)
    assert error(moments, want) < tol(jnp.float32, 16 * ROWS * LENGTH)
    assert metrics.keys() == wanted.keys()
    for key in wanted:
        assert np.allclose(metrics[key], wanted[key], rtol=1e-4, atol=1e-6), key


QUICK = [("moeut:tiny", "expert tensor"), ("mor:tiny", "all")]
# tests/train/test_systems.py takes every system, on fewer devices.
REST = [
    exhaustive("universal:tiny", "fsdp context"),
    exhaustive("huginn:tiny", "fsdp"),
    exhaustive("umoe:tiny", "expert tensor"),
    slow("sut:tiny", "fsdp tensor"),
    exhaustive("parscale:tiny", "fsdp tensor"),
    slow("parscale:tiny", "fsdp context"),
    exhaustive("mor:tiny_token", "tensor"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [*QUICK, *REST])
def test_a_step_is_the_same_on_one_device_and_on_several(name, mesh):
    agrees(name, mesh)


PARTS = (("depth.parts", 4),)


@pytest.mark.slow
@pytest.mark.parametrize("more", [exhaustive(PARTS), (*PARTS, ("depth.capacity_warmup_steps", 9))])
def test_parts_of_a_sequence_choose_alike_wherever_they_are(more):
    agrees("mor:tiny", "fsdp context", more)


@pytest.mark.slow
def test_parts_choose_and_move_tokens_without_other_devices():
    """Whole rows of states come together to be chosen from, but not where parts choose."""

    def gathers_of_states(more):
        made = trainer("mor:tiny", tuple(MESHES["fsdp context"].items()), more)
        found = collectives.collectives(hlo.parse(made.lower().compile().as_text()))
        size = 4 * ROWS // 2 * LENGTH * made.model.block.embed_dim
        along = (each for each in found if each.axes(made.mesh.shape) == ("context",))
        gathers = (each for each in along if (each.kind, each.bytes) == ("all-gather", size))
        return sum(each.executions for each in gathers)

    assert gathers_of_states(PARTS) <= 1  # towards the embedding
    assert gathers_of_states(()) >= 4


def test_each_part_keeps_its_own_best():
    scores = jnp.array([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3], [0, 0, 0, 5, 4, 6.0]])
    kept = expert_choice.select(scores, 2, parts=2)
    assert kept.tolist() == [[0, 5], [0, 5]]
    kept = expert_choice.select(scores, 4, parts=2)
    assert kept.tolist() == [[0, 1, 4, 5], [0, 1, 3, 5]]


def test_parts_that_do_not_divide_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"depth.parts: 5 do not divide the 16 tokens") as refusal:
        settings("mor:tiny", (("depth.parts", 5),))
    assert "\n" not in str(refusal.value)
