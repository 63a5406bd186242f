"""A schedule that cannot do what it says, and what else may not be meant, is told."""

import pytest

from recursia import budget, config, settings
from recursia.errors import ConfigError
from recursia.notes import notes
from tests.helpers.refusals import refused
from tests.helpers.runs import tiny_run, values


def load(name, *typed):
    return config.load(name, dict(item.split("=", 1) for item in typed))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["schedule.warmup_steps=5000"], "schedule.warmup_steps: 5000 steps of the 300"),
        (["schedule.warmup_steps=300"], "schedule.warmup_steps: 300 steps of the 300"),
        (["schedule.warmup_steps=20", "train.num_steps=9"], "schedule.warmup_steps: 20 steps of"),
        (["schedule.decay_fraction=0.95"], "decay of 285, which begins in the 20 of schedule.wa"),
        (["schedule.kind=cosine", "schedule.warmup_steps=400"], "schedule.warmup_steps: 400"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_with_both_numbers(typed, said):
    with refused(ConfigError, "config.schedule.", said):
        load("mor:tiny", *typed)


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 24])
@pytest.mark.parametrize("name", [f"{name}:tiny" for name in config.shipped()])
def test_a_preset_that_is_only_cut_short_runs_and_says_what_that_does(name, steps):
    run = load(name, f"train.num_steps={steps}")
    (said,) = notes(run)
    assert said.startswith("schedule.") and f" {steps} " in said
    assert config.build(settings.Run, config.to_dict(run), "config") == run


@pytest.mark.parametrize(
    "name", [preset for name in config.shipped() for preset in config.presets(name)]
)
def test_no_shipped_schedule_contradicts_itself(name):
    run = config.load(name, {})
    assert run.schedule.conflict(run.train.num_steps) == ""
    assert all("num_microbatches" in note for note in notes(run))


def test_a_phase_that_outlasts_training_is_told(tmp_path):
    for kind, phase in (
        ("expert_choice", "capacity_warmup_steps"),
        ("token_choice", "full_depth_steps"),
    ):
        model = values(tmp_path)["model"]
        model["depth"] = {"kind": kind, "num_recursions": 2, phase: 6}
        (said,) = notes(tiny_run(tmp_path, model=model))
        assert said.startswith(f"model.depth.{phase}: 6 steps, and train.num_steps is 6")
        model["depth"][phase] = 5
        assert notes(tiny_run(tmp_path, model=model)) == []


@pytest.mark.parametrize(
    ("name", "typed", "field"),
    [
        (
            "widenet:tiny",
            "block.balance_loss_weight",
            "model.block.feedforward.balance_loss_weight",
        ),
        ("sut:tiny", "block.mim_weight", "model.block.feedforward.mim_weight"),
        ("mor:tiny_token", "depth.balance_weight", "model.depth.balance_weight"),
    ],
)
def test_losses_that_are_no_sums_over_tokens_are_named_with_microbatches(name, typed, field):
    others = ("block.attention_mim_weight=0",) if name == "sut:tiny" else ()
    of = lambda *typed: load(name, *others, *typed)
    run = of("train.num_microbatches=2")
    (said,) = notes(run)
    assert said.startswith(f"train.num_microbatches: {field} weighs a loss")
    table = budget.render(budget.compare({name: run}, "none"))
    assert f"{name}: {said}." in " ".join(table.split())
    assert notes(of("train.num_microbatches=2", f"{typed}=0")) == []
    assert notes(of()) == []
