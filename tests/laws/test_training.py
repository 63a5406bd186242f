"""Models start at chance, learn, and do so alike on one device and on eight."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from recursia import model, sharding
from recursia import params as parameters
from recursia.errors import ConfigError
from recursia.params import Spec, normal
from tests.helpers.tiny import VOCAB, loss, text, tiny

init = jax.jit(model.init, static_argnums=0)
MODEL = tiny(sharing_="middle_cycle", recursions=2)


@functools.partial(jax.jit, static_argnums=2)
def train(params, tokens, config):
    """Returns the losses of sixty Adam steps on one batch."""
    optimizer = optax.adam(0.02)

    def step(carry, _):
        params, state = carry
        nats, grads = jax.value_and_grad(loss)(params, tokens, config)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), nats

    return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[1]


# One that is routed does by a trainer, in tests/train/test_step.py.
def test_a_new_model_knows_nothing_and_learns_one_batch():
    losses = train(init(MODEL, jax.random.key(0)), text(), MODEL)
    assert abs(losses[0] - math.log(VOCAB)) < 0.02 * math.log(VOCAB)
    assert losses[-1] < 0.5 * losses[0]


def test_every_matrix_is_split_along_its_embedding():
    config = tiny("expert_choice", "middle_cycle")
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    places = sharding.shardings(model.specs(config), mesh, sharding.MeshConfig().rules)
    assert places["core"]["mlp"]["down"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert places["prelude"]["attention"]["query"].spec[1] == "fsdp"
    assert places["depth"]["router"]["out"].spec == PartitionSpec(None, "fsdp")
    assert not any(places["final_norm"].spec)


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (8, 1, (8, 1))]
)
def test_one_axis_takes_the_devices_that_are_left(data, fsdp, shape):
    mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp))
    assert mesh.devices.shape == (1, *shape, 1, 1, 1)
    assert mesh.axis_names == sharding.AXES


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, 3), (4, 4), (1, 1), (16, -1)])
def test_a_mesh_that_is_not_all_devices_is_refused_in_one_line(data, fsdp):
    with pytest.raises(ConfigError, match="does not make 8 devices") as refusal:
        sharding.make_mesh(sharding.MeshConfig(data, fsdp))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("data", "fsdp"), [(-1, -1), (0, 1), (1, -2)])
def test_mesh_sizes_that_cannot_be_are_refused(data, fsdp):
    with pytest.raises(ValueError, match=r"(data|fsdp): got (-1, and so has|0|-2)"):
        sharding.MeshConfig(data, fsdp)


def test_a_width_that_does_not_divide_is_refused_by_name():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
    specs = {"odd": Spec((12, 4), ("embed", None), normal(0.1))}
    with pytest.raises(ConfigError, match=r"embed of .'odd'. is 12 wide, which 8 devices"):
        sharding.shardings(specs, mesh, sharding.MeshConfig().rules)


def test_no_parameters_value_depends_on_the_others():
    spec = Spec((3, 4), (None, None), normal(1.0))
    few = parameters.init({"b": spec}, jax.random.key(0))
    many = parameters.init({"a": spec, "b": spec, "c": {"b": spec}}, jax.random.key(0))
    assert np.array_equal(few["b"], many["b"])
    assert not np.array_equal(many["a"], many["b"])
    assert not np.array_equal(many["c"]["b"], many["b"])
    other = parameters.init({"b": spec}, jax.random.key(1))
    assert not np.array_equal(few["b"], other["b"])


def test_copies_in_a_bank_start_different():
    spec = Spec((3,), (None,), normal(1.0)).stack((2, 2), (None, None))
    bank = parameters.init({"bank": spec}, jax.random.key(0))["bank"].reshape(4, 3)
    assert len({tuple(copy) for copy in bank.tolist()}) == 4
    assert spec.axes == (None, None, None)


@pytest.mark.parametrize("seed", [0])
def test_matrices_start_with_their_standard_deviation_and_norms_at_one(seed):
    params = init(MODEL, jax.random.key(seed))
    assert abs(params["core"]["mlp"]["gate"].std() - 0.02) < 0.002
    assert abs(params["embed"]["table"].std() - 0.02) < 0.002
    assert jnp.all(params["final_norm"] == 1) and jnp.all(params["core"]["norms"]["mlp"] == 1)
