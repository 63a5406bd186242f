"""Phases of training: fewer recursions, or more sharing, in early steps."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from recursia import accounting, budget, cli, config, model, sharding
from recursia.notes import programs
from recursia.train.migration import migrate, moved
from recursia.train.step import Trainer
from tests.helpers.runs import (
    STEPS,
    differences,
    saved,
    state_of,
    tiny_run,
    values,
    write_config,
)
from tests.helpers.tiny import draw, forward, is_equal, text
from tests.helpers.tiny import tiny as tiny_model
from tests.helpers.trainers import FOLDER, VOCAB, batch

UNTIED = tiny_model(sharing_="none", recursions=2, blocks=2)
TIED = UNTIED.in_phase(None, "block")


def trainer(model_fields, **fields):
    """Returns the trainer of a run of four steps."""
    depth = {"kind": "fixed", "num_recursions": 2}
    made = {"depth": depth, "num_layers": 4, **model_fields}
    train = {"num_steps": 4, "batch_size": 8, "seq_len": 16, **fields}
    run = tiny_run(FOLDER, model=made, train=train)
    return Trainer(run, run.model.sized(VOCAB), sharding.make_mesh(run.mesh, jax.devices()[:1]))


def test_untied_steps_compute_what_they_did_and_have_its_moments():
    params, moments = draw(TIED), {"mu": draw(TIED, seed=1), "count": np.int32(3)}
    free, (own,) = migrate(params, (moments,), TIED, UNTIED)
    assert is_equal(forward(free, text(), UNTIED)[0], forward(params, text(), TIED)[0])
    assert is_equal(own["mu"]["core"], migrate(moments["mu"], (), TIED, UNTIED)[0]["core"])
    assert own["count"] == 3
    back, (again,) = migrate(free, (own,), UNTIED, TIED)
    assert is_equal((back, again), (params, moments))


def test_of_tied_steps_the_first_keeps_its_weights():
    params = draw(UNTIED)
    tied, _ = migrate(params, (), UNTIED, UNTIED.in_phase(None, "one"))
    assert is_equal(tied["core"], jax.tree.map(lambda leaf: leaf[:1], params["core"]))


def test_models_that_differ_in_more_are_refused():
    with pytest.raises(ValueError, match="differ in more than `varies`"):
        migrate(draw(TIED), (), TIED, dataclasses.replace(UNTIED, loop_norm="last"))


def test_depths_and_programs_are_known_ahead():
    made = trainer({}, depths=((0.5, 1),))
    depths = [made.model_at(step).schedule.num_recursions for step in range(4)]
    assert depths == [1, 1, 2, 2]
    said = "train: steps 1 to 2 at 1 recursions; steps 3 to 4 as the model; 2 programs"
    assert [line.startswith(said) for line in programs(made.run)] == [True]
    assert len({made.step_function(step) for step in range(4)}) == 2
    whole = dataclasses.replace(made.run, train=dataclasses.replace(made.run.train, depths=()))
    each = [
        accounting.training_flops(made.run.model.at_depth(depth).sized(257), 16) for depth in (1, 2)
    ]
    assert budget.training_flops(whole) == 4 * 8 * each[1]
    assert budget.training_flops(made.run) == 2 * 8 * sum(each)
    assert budget.spent(made.run, 257, 3) == 8 * (2 * each[0] + each[1])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(depths=((0.5, 1),), sharing="none"), "depth 1 lacks weights of later recursions"),
        (dict(depths=((0.5, 1), (0.5, 2))), "fractions 0.5, 0.5, takes numbers between 0 and 1"),
        (dict(ties=((1.0, "one"),)), "fractions 1.0, takes"),
        (dict(ties=((0.5, "recursion"),)), "unties weights of norms that the model ties"),
    ],
)
def test_phases_that_cannot_be_are_refused(fields, why):
    fields = dict(fields)
    sharing = {"sharing": fields.pop("sharing")} if "sharing" in fields else {}
    with pytest.raises(config.ConfigError, match=why):
        trainer(sharing, **fields)


@pytest.mark.slow
def test_a_step_untied_after_a_tied_phase_goes_on_from_its_state():
    made = trainer({"sharing": "none"}, ties=((0.5, "block"),))
    tied, rows = made.in_phase(1), made.put(batch())
    assert tied.model.schedule.size("mlp") == 2 and made.in_phase(2) is made
    state = moved(made.init(), made, tied)
    state, _ = made.step_function(1)(state, rows)
    free = moved(state, tied, made)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    assert shapes(free.params) == shapes(model.specs(made.model)) != shapes(state.params)
    assert is_equal(jax.tree.leaves(moved(free, made, tied)), jax.tree.leaves(state))
    _, same = made.step_function(1)(moved(free, made, tied), rows)
    _, first = made.step_function(2)(free, rows)
    assert np.isclose(first["loss"], same["loss"], rtol=1e-6)


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_across_phases(folder, tmp_path):
    shape = {"num_layers": 4, "sharing": "none", "depth": {"kind": "fixed", "num_recursions": 2}}
    train = {"ties": [[0.34, "one"], [0.67, "block"]]}
    often = {"every_steps": 1, "keep": STEPS}
    made = values(folder, "fixed", model=shape, train=train, checkpoint=often)
    path = write_config(tmp_path / "tiny.py", made)
    run = lambda workdir: cli.main(["train", f"--config={path}", f"--workdir={workdir}"])
    whole = tmp_path / "whole"
    assert run(whole) == 0
    steps = state_of(whole, 2), state_of(whole, 3), state_of(whole, STEPS)
    distinct = [len(np.unique(s["params.core.mlp.up"], axis=0)) for s in steps]
    assert distinct == [1, 2, 4]
    for start in (1, 2):  # within the first phase, and at its end
        broken = tmp_path / f"from_{start}"
        shutil.copytree(whole, broken)
        for step in saved(broken)[start:]:
            shutil.rmtree(broken / "checkpoints" / str(step))
        assert run(broken) == 0
        assert not differences(broken, whole)
