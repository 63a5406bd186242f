"""The model trains through the kernels on a TPU and a GPU, and they change no number."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from recursia import config, sharding, topology
from recursia.kernels.dispatch import Op
from recursia.kernels.routed_attention import PLANNED
from recursia.layers import experts
from recursia.train.step import Trainer
from tests.helpers import exhaustive, slow
from tests.helpers.batches import whole_rows
from tests.helpers.kernels import GPUS, NEEDS_INTERPRETER, normal, run_interpreted
from tests.helpers.tiny import counted, error, tol

ATTENTION = ("routed_attention", "routed_attention_backward")
GROUPED = ("grouped_matmul", "grouped_outer")
OPS = {
    "mor:tiny": ATTENTION,
    "moeut:tiny": (*GROUPED, *ATTENTION),
    "sut:tiny": GROUPED,  # its attention looks at distances, which the kernels decline
}
MACHINES = ("v5e:2x2", *(pytest.param(gpu, marks=pytest.mark.gpu_compile) for gpu in GPUS))


def trainer(name, devices, axes=(("fsdp", -1),), **changed):
    changed = {"model.vocab_size": 256, "train.batch_size": 8, "train.seq_len": 256, **changed}
    run = config.load(name, {field: str(value) for field, value in changed.items()})
    mesh = sharding.MeshConfig(**{"data": 1, "fsdp": 1, **dict(axes)})
    run = dataclasses.replace(run, mesh=mesh)
    return Trainer(run, run.model.sized(256), sharding.make_mesh(run.mesh, devices))


@pytest.fixture
def taken(monkeypatch):
    """Returns what implementation each op was lowered to, as it is chosen."""
    found, choose = {}, Op.choose

    def told(op, *how):
        chosen = choose(op, *how)
        found.setdefault(op.name, set()).add(chosen[0])
        return chosen

    monkeypatch.setattr(Op, "choose", told)
    return found


@pytest.mark.parametrize(
    "name", [exhaustive("mor:tiny"), slow("moeut:tiny"), exhaustive("sut:tiny")]
)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_training_step_compiles_with_its_kernels(taken, machine, name):
    made = trainer(name, topology.devices(machine), **{"model.dtype": "bfloat16"})
    text = made.lower().compile().as_text()
    assert "custom-call" in text
    for op in OPS[name]:
        assert taken[op] and "reference" not in taken[op], op
        # Over the keys of its own recursion, a routed subset runs no attention kernel of ours.
        assert op not in ATTENTION or taken[op] <= {"splash", "cudnn"}, op


@pytest.mark.parametrize("platform", [slow("tpu"), "cuda"])
def test_layers_of_a_recursion_and_their_backward_passes_share_a_plan(monkeypatch, platform):
    run_interpreted(monkeypatch, platform)
    ours, called = Op.__call__, []

    def run(op, given, *more, backend="auto", **static):
        if given.where.query_positions is None:  # a recursion's own keys, which a library takes
            return op.reference(given, *more, **static)
        called.append(op.name)
        return ours(op, given, *more, **static)

    monkeypatch.setattr(Op, "__call__", run)
    made = trainer("mor:tiny_kv_share", jax.devices()[:1], **{"model.dtype": "bfloat16"})
    is_table = lambda equation: equation.params.get("name") == "block_table"
    # Tables of all kernels, once for each of two recursions that read the keys of the first.
    assert counted(made.trace().jaxpr, is_table, is_unrolled=True) == 2 * len(PLANNED)
    assert {*called} == {*ATTENTION}


@pytest.mark.gpu_compile
@pytest.mark.parametrize("is_chosen", [True, False])
def test_a_step_on_a_gpu_sums_in_an_order_unless_told_otherwise(is_chosen):
    fields = {"model.dtype": "bfloat16", "train.deterministic": str(is_chosen).lower()}
    text = trainer("mor:tiny", topology.devices("h100:1"), **fields).lower().compile().as_text()
    scatters = [line for line in text.splitlines() if re.search(r"= \S+ scatter\(", line)]
    assert scatters
    assert all("unique_indices=true" in line for line in scatters) == is_chosen


def batch(rows=2, length=24):
    tokens = np.random.default_rng(0).integers(0, 256, (rows, length + 1), dtype=np.int32)
    return whole_rows(tokens, np.ones((rows, length), np.float32))


@functools.cache
def reference(name):
    """Returns `first_moments` without a kernel, on one device."""
    found = first_moments(name)
    jax.clear_caches()
    return found


def first_moments(name, axes=()):
    """Returns the gradients of one step, as its first moments, and its metrics."""
    sizes = {"train.batch_size": 2, "train.seq_len": 24, "optimizer.clip_norm": 0.0}
    small = {"model.num_layers": {"moeut:tiny": 4, "sut:tiny": 2}.get(name, 5)}
    if not name.startswith("mor"):
        small["depth.num_recursions"] = 2
    devices = jax.devices()[: 2 ** len(axes)]
    packed = {"data.cross_document_attention": False}
    made = trainer(name, devices, axes, **sizes, **small, **packed)
    state, metrics = made.step_function(0)(made.init(), made.put(batch()))
    is_adam = lambda leaf: hasattr(leaf, "mu")
    found = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    return jax.device_get((next(found).mu, metrics))


MOSAIC = functools.partial(pytest.param, marks=NEEDS_INTERPRETER)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, platform, axes",  # all three axes at once end the process in XLA's partitioner for CPUs
    [
        *(
            MOSAIC(name, "cuda", [], id=f"{name}-mosaic_gpu")
            for name in ("mor:tiny_kv_share", "moeut:tiny", "sut:tiny")
        ),
        *(exhaustive(name, "tpu", []) for name in OPS),  # two devices show the same
        exhaustive("mor:tiny", "tpu", ["tensor"]),
        ("mor:tiny_kv_share", "tpu", ["context"]),  # with a plan for each device's queries
        exhaustive("moeut:tiny", "tpu", ["expert", "tensor"]),
        exhaustive("moeut:tiny", "tpu", ["context"]),
        exhaustive("sut:tiny", "tpu", ["expert"]),
        exhaustive("sut:tiny", "tpu", ["tensor"]),
    ],
)
def test_kernels_give_the_references_loss_and_gradient(monkeypatch, name, platform, axes):
    want, wanted = reference(name)
    run_interpreted(monkeypatch, platform)
    moments, metrics = first_moments(name, [(axis, 2) for axis in axes])
    jax.clear_caches()
    assert error(moments, want) < tol(jnp.float32, 8 * 24 * 64)
    for key in ("loss",) if axes else wanted:
        np.testing.assert_allclose(metrics[key], wanted[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("platform", (None, "tpu"))
def test_experts_of_another_device_are_as_if_they_were_here(monkeypatch, platform):
    rows, length, inner, width, num_experts, k = 4, 9, 8, 16, 4, 2
    index = np.random.default_rng(0).integers(0, num_experts, (rows, length, k))
    index[:2] = 0  # no choice of one device's tokens is of the other device's experts
    arrays = normal(rows, length, inner), jnp.asarray(index), normal(rows, length, k)
    shapes = (inner, width), (width, inner), (width,), (inner,)
    banks = tuple(normal(num_experts, *shape) for shape in shapes)

    def loss(x, weight, banks, index):
        up, down, up_bias, down_bias = banks
        choice = experts.Choice(index, weight)
        mlp = functools.partial(experts.expert_mlp, x, choice, up, down, jnp.tanh)
        y = mlp() + mlp(up_bias=up_bias, down_bias=down_bias)
        wide = experts.mix(experts.project(x, index, up), weight)
        return (y**2).sum() + ((wide + experts.project_and_mix(x, index, weight, up)) ** 2).sum()

    def step(x, index, weight, *banks):
        value, gradients = jax.value_and_grad(loss, (0, 1, 2))(x, weight, banks, index)
        return value[None], gradients

    value, expected = jax.jit(step)(*arrays, *banks)
    if platform:
        run_interpreted(monkeypatch, platform)
    sizes = dict.fromkeys(sharding.AXES, 1) | {"expert": 2}
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices()[:2])
    split = jax.shard_map(
        step, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=False
    )
    values, gradients = jax.jit(split)(*arrays, *banks)
    assert error((values.sum(), gradients), (value[0], expected)) < tol(jnp.float32, 64)
