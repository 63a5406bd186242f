"""One update: the same for any microbatches and devices, learning, and compiled once."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model, sharding
from recursia.train import step as step_lib
from recursia.train.objective import loss_fn
from recursia.train.step import Trainer
from tests.helpers import slow
from tests.helpers.batches import nats
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import error, is_equal, tol
from tests.helpers.trainers import LENGTH, ROWS, VOCAB, batch

FOLDER = pathlib.Path("no-data-is-read")


def trainer(depth, devices=1, changed=(), mesh=(), **train):
    """Returns the trainer of a tiny run over so many devices."""
    fields = {"learning_rate": 0.01}
    run = tiny_run(FOLDER, depth, train=train, mesh=dict(mesh), optimizer=fields)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **dict(changed)))
    where = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    return Trainer(run, run.model.sized(VOCAB), where)


def after(made, steps=1, data=None):
    """Returns the state and metrics after some steps on one batch."""
    state = made.init()
    for step in range(steps):
        state, metrics = made.step_function(step)(state, made.put(data or batch()))
    return jax.device_get((state, metrics))


@functools.cache
def whole(depth):
    return after(trainer(depth))


@pytest.mark.parametrize(("depth", "count"), [slow("fixed", 4), ("expert_choice", 2)])
def test_microbatches_change_nothing(depth, count):
    state, metrics = after(trainer(depth, num_microbatches=count))
    want, wanted = whole(depth)
    assert metrics.keys() == wanted.keys()
    # Adam divides by the root of the square, so that rounding of a tiny gradient is seen in full:
    # what must agree are the gradients, which the first moments of one step are.
    assert error(moments(state), moments(want)) < tol(jnp.float32, ROWS * LENGTH)
    for name in wanted:
        assert error(metrics[name], wanted[name]) < tol(jnp.float32, ROWS * LENGTH), name


def moments(state):
    return state.opt_state[1][0].mu


def test_the_loss_is_the_mean_over_weighted_tokens():
    made = trainer("fixed")
    rows = batch()
    _, metrics = whole("fixed")
    params = made.init().params
    where = {name: rows[name] for name in ("positions", "segment_ids")}
    out = model.apply(params, rows["tokens"], made.model, mode="train", **where)
    each = nats(model.logits(params, out.hidden, made.model), rows["targets"])
    want = (rows["weights"] * each).sum() / rows["weights"].sum()
    assert abs(metrics["loss"] - want) < 1e-5
    assert abs(metrics["mean_depth"] - 2) < 1e-6


def test_a_batch_without_any_weight_moves_no_number_to_nan():
    rows = batch()
    rows["weights"] = np.zeros_like(rows["weights"])
    state, metrics = after(trainer("fixed"), data=rows)
    assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_one_device_is_a_mesh_of_eight():
    alone, wanted = whole("expert_choice")
    spread, metrics = after(trainer("expert_choice", 8, mesh={"data": 4, "fsdp": 2}))
    assert metrics.keys() == wanted.keys()
    assert error(moments(spread), moments(alone)) < tol(jnp.float32, ROWS * LENGTH)
    for name in wanted:
        assert error(metrics[name], wanted[name]) < tol(jnp.float32, ROWS * LENGTH), name


def test_the_loss_falls_and_one_batch_is_learnt_by_heart():
    made = trainer("expert_choice", num_steps=120)
    state, losses = made.init(), []
    data = made.put(batch())
    for step in range(120):
        state, metrics = made.step_function(step)(state, data)
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - np.log(VOCAB)) < 0.02 * np.log(VOCAB)
    assert losses[20] < losses[0] and losses[60] < losses[20]
    assert losses[-1] < 0.5 * losses[0]


def test_each_distinct_model_is_compiled_once(monkeypatch):
    traced = []

    def counted(trainer, config, state, batch, *_):
        traced.append(config.depth.capacity_warmup_steps)
        return state.replace(step=state.step + 1), {}

    monkeypatch.setattr(step_lib, "train_step", counted)
    warming = {"kind": "expert_choice", "num_recursions": 2, "capacity_warmup_steps": 3}
    run = tiny_run(FOLDER, model={"depth": warming}, train={"num_steps": 6})
    made = Trainer(run, run.model.sized(VOCAB), sharding.make_mesh(run.mesh, jax.devices()[:1]))
    functions = [made.step_function(step) for step in range(6)]
    assert functions[0] is functions[1] is functions[2]
    assert functions[3] is functions[4] is functions[5] is not functions[0]
    state = made.init()
    for function in functions:
        state, _ = function(state, made.put(batch()))
    assert traced == [3, 0]
    assert int(state.step) == 6


def test_the_state_is_donated():
    made = trainer("fixed")
    state = made.init()
    made.step_function(0)(state, made.put(batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_what_the_trainer_keeps_is_float32_whatever_it_computes_in():
    made = trainer("fixed", changed={"dtype": "bfloat16"}.items())
    state, metrics = after(made)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        np.dtype("float32"),
        np.dtype("int32"),
    }
    integers = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == np.int32]
    assert all(leaf.shape == () for leaf in integers)  # counts of steps
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in jax.tree.leaves(metrics))
    assert 0 < error(metrics["loss"], whole("fixed")[1]["loss"]) < 1e-2
    hidden = jax.eval_shape(
        lambda p, t: model.apply(p, t, made.model, mode="train").hidden,
        state.params,
        batch()["tokens"],
    )
    assert hidden.dtype == jnp.bfloat16


def test_the_abstract_state_is_the_state_whatever_the_seed():
    made = trainer("expert_choice", 8, mesh={"data": 4, "fsdp": 2}, seed=2**32 - 1)
    state, abstract = made.init(), made.abstract()
    for real, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype) == (shape.shape, shape.dtype)
        assert real.sharding.is_equivalent_to(shape.sharding, real.ndim)
    table = state.params["embed"]["table"]
    assert table.addressable_shards[0].data.shape == (VOCAB, 8)
    assert moments(state)["embed"]["table"].sharding == table.sharding


def test_a_new_state_is_the_same_on_every_mesh():
    spread = jax.device_get(trainer("fixed", 8, mesh={"data": 4, "fsdp": 2}).init())
    assert is_equal(spread, jax.device_get(trainer("fixed").init()))


def test_what_is_minimised_is_the_loss_with_the_depth_policys_own():
    made = trainer("expert_choice")
    rows = made.put(batch())
    total = rows["weights"].sum()
    loss = jax.jit(functools.partial(loss_fn, made.run, made.model), static_argnums=4)
    value, metrics = loss(made.init().params, rows, total, jnp.int32(0), 1)
    assert metrics["loss_router"] > 1e-4
    assert abs(value - metrics["loss"] - metrics["loss_router"]) < 1e-6
