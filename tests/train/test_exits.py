"""Training that reads every recursion's state, by its formulas; what is frozen stays."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting
from recursia.errors import ConfigError, UserError
from recursia.parallel import Parallel
from recursia.sharing.remat import KEEP
from recursia.traced_flops import count_flops
from recursia.train import loop
from recursia.train.objective import loss_fn
from tests.helpers import slow
from tests.helpers.blocks import altered
from tests.helpers.refusals import refused
from tests.helpers.runs import state_of
from tests.helpers.tiny import error, is_equal, tol
from tests.helpers.trainers import (
    COUNT,
    FIXED,
    GATE,
    LENGTH,
    ROWS,
    VOCAB,
    batch,
    drawn,
    graded,
    leaves,
    mean,
    nats_of,
    short_run,
    trainer,
)

STEPS = {"num_steps": 60}


def assert_loss(made, formula):
    """Asserts that the trainer minimises `formula(nats, what the policy reports, weights)`."""

    def total(weights):
        nats, aux = nats_of(made, weights)
        return mean(formula(nats, aux, weights)), mean(nats[-1])

    weights = drawn(made)
    (want, last), want_grads = jax.jit(jax.value_and_grad(total, has_aux=True))(weights)
    value, metrics, grads = graded(made, weights)
    assert abs(value - want) < 1e-5 * abs(want)
    assert error(grads, want_grads) < tol(jnp.float32, ROWS * LENGTH * VOCAB)
    assert any(np.any(g) for g in jax.tree.leaves(want_grads["core"]))
    assert abs(metrics["loss"] - last) < 1e-5
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("is_tied", [True, slow(False)])
def test_stage_one_is_the_expected_loss_less_the_entropy(is_tied):
    made = trainer({**GATE, "entropy_weight": 0.3}, train={"loss_chunk": 5})
    shape = dataclasses.replace(made.run.model.embed, is_tied=is_tied)
    run = dataclasses.replace(made.run, model=dataclasses.replace(made.run.model, embed=shape))
    made = dataclasses.replace(made, run=run, model=run.model.sized(VOCAB))

    def formula(nats, aux, weights):
        score = aux.states @ weights["depth"]["gate"]["weight"] + weights["depth"]["gate"]["bias"]
        stop = jax.nn.sigmoid(score)
        p = jnp.stack([stop[0], (1 - stop[0]) * stop[1], (1 - stop[0]) * (1 - stop[1])])
        return (p * nats).sum(0) + 0.3 * (p * jnp.log(p)).sum(0)

    metrics = assert_loss(made, formula)
    assert abs(metrics["loss_exits"]) > 0.01


def test_one_recursion_trains_on_its_cross_entropy():
    made = trainer({**GATE, "num_recursions": 1, "entropy_weight": 5.0})
    weights = drawn(made)
    value, metrics, grads = graded(made, weights)
    assert value == metrics["loss"] and metrics["exit_probability"].tolist() == [1.0]
    assert not any(np.any(g) for g in jax.tree.leaves(grads["depth"]))


@pytest.mark.slow
def test_a_large_entropy_weight_makes_depths_alike():
    options = {"optimizer": {"trainable": ["depth"], "learning_rate": 0.1}, "train": STEPS}
    made = trainer({**GATE, "num_recursions": 2, "entropy_weight": 1e4}, **options)
    state = made.init()
    certain = {"gate": {**state.params["depth"]["gate"], "bias": jnp.float32(2.0)}}
    state = state.replace(params={**state.params, "depth": certain})  # p starts at .88 and .12
    seen = []
    for step in range(60):
        state, metrics = made.step_function(step)(state, made.put(batch()))
        seen.append(np.asarray(metrics["exit_probability"]))
    assert seen[0][0] > 0.85
    assert np.abs(seen[-1] - 0.5).max() < 0.02


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("how", "shares"), [("weighted", (1 / 6, 2 / 6, 3 / 6)), ("aggressive", (0.25, 0.25, 1.0))]
)
def test_exits_of_a_fixed_depth_are_weighed_by_hand(how, shares):
    made = trainer({**FIXED, "exit_loss": how, "exit_alpha": 0.25})
    formula = lambda nats, aux, weights: sum(s * n for s, n in zip(shares, nats, strict=True))
    assert "loss_exits" not in assert_loss(made, formula)


@pytest.mark.slow
def test_stage_two_moves_the_gate_and_nothing_else():
    # Fine slopes, so that targets of untrained states differ.
    depth = {**GATE, "stage": 2, "slope": 3.0}
    free = trainer(depth)
    weights = drawn(free)
    value, _, grads = graded(free, weights)

    @jax.jit
    @jax.value_and_grad
    def formula(gate, weights):
        nats, aux = nats_of(free, weights)
        gain = jnp.maximum(0, nats[:-1] - nats[1:])
        goes_on = 1 / (1 + jnp.exp(-3.0 * (gain - 0.005)))
        stop = jax.nn.sigmoid(aux.states @ gate["weight"] + gate["bias"])[1:]
        each = -(goes_on * jnp.log(1 - stop) + (1 - goes_on) * jnp.log(stop)).mean(0)
        return mean(each)

    want, want_grads = formula(weights["depth"]["gate"], weights)
    assert abs(value - want) < 1e-5
    assert error(grads["depth"]["gate"], want_grads) < tol(jnp.float32, ROWS * LENGTH)
    assert not any(np.any(g) for name in grads.keys() - {"depth"} for g in leaves(grads[name]))

    made = trainer(depth, optimizer={"trainable": ["depth"], "weight_decay": 0.5})
    state = made.init()
    before = jax.device_get(state.params)
    for step in range(3):
        state, _ = made.step_function(step)(state, made.put(batch()))
    after = jax.device_get(state.params)
    assert not any(map(np.array_equal, leaves(after.pop("depth")), leaves(before.pop("depth"))))
    assert is_equal(after, before)


@pytest.mark.slow
def test_frozen_weights_stay_even_with_momentum_of_their_own():
    made = trainer(GATE)
    state, _ = made.step_function(0)(made.init(), made.put(batch()))
    frozen = trainer(GATE, optimizer={"trainable": ["core.mlp", "final_norm"]})
    before = jax.device_get(state.params)
    old = jax.device_get(state.opt_state)
    again = frozen.init()
    moments = jax.tree.unflatten(jax.tree.structure(again.opt_state), leaves(old))
    state = state.replace(params=jax.tree.map(jnp.asarray, before), opt_state=moments)
    state, metrics = frozen.step_function(1)(state, frozen.put(batch()))
    after = jax.device_get(state.params)
    moved = lambda a, b: not is_equal(a, b)
    assert moved(after["core"].pop("mlp"), before["core"].pop("mlp"))
    assert moved(after.pop("final_norm"), before.pop("final_norm"))
    assert is_equal(after, before)
    assert metrics["gradient_norm"] > 0


def test_a_path_that_is_not_there_is_refused_in_one_line():
    with refused(ConfigError, "optimizer.trainable", "'cores'", "core"):
        trainer(GATE, optimizer={"trainable": ["cores"]}).init()


def counted(made):
    """Returns the FLOPs of a sequence in the trainer's loss and its gradient."""
    shape = jax.eval_shape(lambda: {name: jnp.asarray(x) for name, x in batch().items()})
    grad = jax.value_and_grad(functools.partial(loss_fn, made.run, made.model), has_aux=True)
    arguments = (made.abstract().params, shape, jnp.float32(1), jnp.int32(0), 0)
    return count_flops(jax.make_jaxpr(grad)(*arguments)) / ROWS


@pytest.mark.parametrize(
    "depth", [GATE, {**FIXED, "exit_loss": "weighted"}, {**GATE, "num_recursions": 1}], ids=str
)
def test_the_flops_of_every_exit_are_counted(depth):
    made = trainer(depth)
    assert counted(made) == accounting.executed_training_flops(made.model, LENGTH, KEEP)


def test_a_gate_alone_costs_a_forward_pass():
    made = trainer({**GATE, "stage": 2}, optimizer={"trainable": ["depth"]})
    width = made.model.block.embed_dim
    heads = (COUNT - 1) * 2 * LENGTH * width * VOCAB
    towards_gate = COUNT * 2 * LENGTH * width
    forward = accounting.forward_flops(made.model, LENGTH)
    assert counted(made) == forward + heads + towards_gate


@pytest.mark.slow
def test_microbatches_change_nothing():
    whole, split = (trainer(GATE, train={"num_microbatches": count}) for count in (1, 4))
    want, wanted = whole.step_function(0)(whole.init(), whole.put(batch()))
    got, metrics = split.step_function(0)(split.init(), split.put(batch()))
    moments = lambda state: state.opt_state[1][0].mu
    assert error(moments(got), moments(want)) < tol(jnp.float32, ROWS * LENGTH)
    for name in ("loss", "loss_exits", "exit_entropy", "exit_probability", "mean_depth"):
        assert error(metrics[name], wanted[name]) < tol(jnp.float32, ROWS * LENGTH), name


@pytest.mark.slow
def test_a_gate_starts_from_another_run_and_resumes_without_it(folder, earlier, tmp_path, capsys):
    source, workdir = shutil.copytree(earlier, tmp_path / "source"), tmp_path / "gate"
    gate = lambda steps: short_run(
        folder,
        {**GATE, "stage": 2},
        train={"num_steps": steps, "init_from": str(source), "seed": 7},
        optimizer={"trainable": ["depth"]},
    )
    loop.train(gate(2), workdir, {})
    assert f"starting from {source} at step 1; drawn: depth" in capsys.readouterr().err
    assert json.loads((workdir / "config.json").read_text())["train"]["init_from"] == str(source)
    first, second = state_of(earlier, 1), state_of(workdir, 2)
    kept = [n for n in first if n.startswith("params.") and "depth" not in n]
    assert len(kept) > 5
    assert all(np.array_equal(first[name], second[name]) for name in kept)
    shutil.rmtree(source)
    loop.train(gate(3), workdir, {})
    assert "resuming" in capsys.readouterr().err
    third = state_of(workdir, 3)
    assert all(np.array_equal(first[name], third[name]) for name in kept)
    gates = [name for name in third if name.startswith("params.depth.")]
    assert len(gates) == 2
    assert not any(np.array_equal(third[name], second[name]) for name in gates)


@pytest.mark.slow
def test_copies_start_from_one(folder, earlier, tmp_path, capsys):
    start = {"num_steps": 1, "init_from": str(earlier), "seed": 7}
    run = short_run(folder, train=start, optimizer={"trainable": ["parallel"]})
    copies = dataclasses.replace(run.model, parallel=Parallel(num_copies=2, prefix_tokens=2))
    loop.train(dataclasses.replace(run, model=copies), tmp_path, {})
    said = capsys.readouterr().err
    assert "drawn: parallel, core.prefix" in said
    first, second = state_of(earlier, 1), state_of(tmp_path, 1)
    kept = [name for name in first if name.startswith("params.")]
    assert all(np.array_equal(first[name], second[name]) for name in kept)
    drawn = {name for name in second if name.startswith("params.")} - set(kept)
    assert all("prefix" in name or "parallel" in name for name in drawn)
    assert all(second[name].any() for name in drawn if "bias" not in name)


@pytest.mark.parametrize(
    ("place", "widths", "num_layers", "parts"),
    [
        ("nothing", {}, 6, ("config.train.init_from: ", "no config.json")),
        ("earlier", {"mlp_dim": 48}, 6, ("earlier has core.mlp.", "this model")),
        ("earlier", {}, 9, ("earlier has core.", "this model")),
    ],
    ids=["no run", "other width", "other blocks"],
)
def test_a_start_that_does_not_fit_is_refused_in_one_line(
    folder, earlier, tmp_path, place, widths, num_layers, parts
):
    run = short_run(folder, train={"init_from": str(earlier.parent / place)})
    block = altered(run.model.block, **widths)
    changed = dataclasses.replace(run.model, block=block, num_layers=num_layers)
    with refused(UserError, *parts):
        loop.train(dataclasses.replace(run, model=changed), tmp_path, {})
