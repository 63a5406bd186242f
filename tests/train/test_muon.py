"""Muon: what is a matrix, that each is orthogonalised by itself, and training with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import config, params, sharding
from recursia.optimizers.muon import Muon
from recursia.params import Spec, ones
from recursia.train.step import Trainer
from tests.helpers import exhaustive
from tests.helpers.batches import whole_rows

CONFIG = Muon(1.0, weight_decay=0.0, clip_norm=0.0, precision="float32")
STEADY = optax.constant_schedule(1.0)
RNG = np.random.default_rng(0)


def moved(spec, grad, muon=CONFIG):
    """Returns the update of one parameter from zeros."""
    chain, zeros = muon.transform({"w": spec}, STEADY), {"w": jnp.zeros(spec.shape)}
    return chain.update({"w": jnp.asarray(grad)}, chain.init(zeros), zeros)[0]["w"]


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("one", "names", "inputs"),
    [
        ((5, 3), ("embed", "mlp"), 1),
        ((6, 2, 4), ("embed", "heads", None), 1),
        ((2, 4, 6), ("heads", None, "embed"), 2),
        ((3, 5, 4), ("experts", "embed", "mlp"), 1),
    ],
    ids=["matrix", "query", "out", "experts"],
)
def test_each_matrix_of_a_bank_is_orthogonalised_by_itself(one, names, inputs):
    spec = Spec(one, names, ones, inputs=inputs)
    grad = drawn(2, *one)
    together = moved(spec.stack((2,), (None,)), grad)
    rest = slice(1, None) if names[0] == "experts" else slice(None)
    split = one[rest]
    flat = (int(np.prod(split[:inputs])), int(np.prod(split[inputs:])))
    for got, of in zip(together.reshape(-1, *flat), grad.reshape(-1, *flat), strict=True):
        alone = moved(Spec(flat, ("embed", "mlp"), ones), of)
        assert np.abs(got - alone).max() < 1e-5
        size = np.linalg.svd(got, compute_uv=False) / (0.2 * max(flat) ** 0.5)
        assert size.min() > 0.6 and size.max() < 1.25


@pytest.mark.parametrize(
    "changed",
    [
        {"axes": ("vocab", "embed")},
        {"is_matrix": False},
        {"is_decayed": False},
        {"shape": (12,), "axes": (None,)},
    ],
)
def test_what_is_no_matrix_takes_adam(changed):
    spec = Spec(**{"shape": (4, 3), "axes": ("embed", "mlp"), "init": ones, **changed})
    spec = spec.stack((2,), (None,))
    assert np.allclose(moved(spec, grad := drawn(*spec.shape)), -np.sign(grad), atol=1e-4)


def test_a_matrix_without_a_gradient_stays():
    assert not np.any(moved(Spec((4, 3), ("embed", "mlp"), ones), np.zeros((4, 3), np.float32)))


@functools.cache
def trainer(name, mesh=()):
    fields = {"vocab_size": 258, "batch_size": 8, "seq_len": 16, "loss_chunk": 16}
    changed = {f"train.{k}": str(v) for k, v in fields.items() if k != "vocab_size"}
    changed |= {"model.vocab_size": "258", "optimizer.kind": "muon"}
    run = config.load(name, changed | {"optimizer.precision": "float32"})
    sizes = {**dict.fromkeys(sharding.AXES, 1), **dict(mesh)}
    run = dataclasses.replace(run, mesh=sharding.MeshConfig(**sizes))
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return Trainer(run, run.model.sized(258), sharding.make_mesh(run.mesh, devices))


def stepped(made):
    tokens = np.random.default_rng(0).integers(0, 258, (8, 17), dtype=np.int32)
    state, data = made.init(), made.put(whole_rows(tokens, np.ones((8, 16), np.float32)))
    for step in range(2):
        state, _ = made.step_function(step)(state, data)
    return jax.device_get((state.params, state.opt_state))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        exhaustive("mor:tiny", (("data", 2), ("fsdp", 2), ("tensor", 2))),
        ("moeut:tiny", (("fsdp", 2), ("expert", 2), ("data", 2))),
    ],
)
@pytest.mark.slow
def test_steps_are_the_same_on_one_device_and_on_eight(name, mesh):
    one, eight = stepped(trainer(name)), stepped(trainer(name, mesh))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / (np.abs(a).max() + 1e-6), one, eight)
    assert max(jax.tree.leaves(apart)) < 2e-3


def test_momentum_lies_with_its_parameter_and_routers_take_adam():
    made = trainer("moeut:tiny", (("fsdp", 2), ("expert", 2), ("data", 2)))
    specs, state = made.specs, made.state_shardings.opt_state
    is_trace = lambda x: isinstance(x, optax.TraceState)
    (trace,) = (x.trace for x in jax.tree.leaves(state, is_leaf=is_trace) if is_trace(x))
    where = dict(jax.tree_util.tree_leaves_with_path(made.state_shardings.params))
    held = dict(jax.tree_util.tree_leaves_with_path(trace))
    matrices = {p for p, s in jax.tree_util.tree_leaves_with_path(specs) if s.matrix}
    assert held.keys() == matrices and all(held[path] == where[path] for path in held)
    assert not specs["core"]["router"].matrix and specs["core"]["experts"]["up"].matrix
    moments = made.run.optimizer.state_bytes(specs)
    assert 4 * params.count(specs) < moments < 8 * params.count(specs)
