"""What a report says follows from the labels and losses of trials, in any order."""

import dataclasses
import json
import random

import numpy as np
import pytest

from recursia import cli
from recursia.errors import DataError
from recursia.sweep import directory, picture, report
from recursia.sweep.declaration import Declaration
from recursia.sweep.trial import Trial
from tests.helpers import sweeps


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def family(results, index=0):
    return report.of(results).families[0][index]


def axes_of(results):
    """Returns the panels of the picture, by their titles."""
    return {axes.get_title(): axes for axes in picture.draw(report.of(results), "a sweep").axes}


def test_equal_flops_give_back_the_laws_of_size_and_of_loss():
    held = []
    for key in range(5):
        found = family(sweeps.iso_flop(0.004, key=key))
        held.append(holds(found.best.exponent, sweeps.GROWTH))
        held.append(holds(found.least.exponent, sweeps.EXPONENT))
        held.append(holds(found.least.floor, sweeps.FLOOR))
    assert np.mean(held) >= 0.85


def test_without_noise_the_laws_are_found_again():
    found = family(sweeps.iso_flop(0.0))
    assert found.best.exponent.value == pytest.approx(sweeps.GROWTH, abs=1e-4)
    assert found.least.exponent.value == pytest.approx(sweeps.EXPONENT, abs=1e-3)
    for valley in found.valleys:
        assert valley.fit.best.value == pytest.approx(sweeps.best_size(valley.at), rel=1e-3)
        assert valley.lowest == min(point.loss for point in valley.points)


def test_the_order_of_results_does_not_matter():
    results = sweeps.iso_flop(0.01, systems=("one", "other"))
    shuffled = random.Random(0).sample(results, len(results))
    assert report.to_json(report.of(shuffled)) == report.to_json(report.of(results))


def test_names_of_systems_do_not_matter():
    plain = report.to_json(report.of(sweeps.iso_flop(0.01, systems=("a", "b"))))
    renamed = report.to_json(report.of(sweeps.iso_flop(0.01, systems=("x", "y"))))
    both = zip(plain["families"], renamed["families"], strict=True)
    assert [a["name"] for a in plain["families"]] == ["a", "b"]
    for mine, other in both:
        assert {**mine, "name": ""} == {**other, "name": ""}


def test_the_best_learning_rate_falls_with_width_as_it_was_made_to():
    found = family(sweeps.rates(0.002))
    assert (found.across.label, found.along.label) == ("learning_rate", "width")
    assert holds(found.best.exponent, -1)


def test_diverged_trials_are_marked_and_not_fitted():
    results = sweeps.iso_flop(0.01)
    gone = sweeps.result("x", {**results[0].labels, "seed": 9}, None, size=1e4, flops=1e10)
    plain, with_it = family(results), family([*results, gone])
    assert with_it.valleys[0].fit == plain.valleys[0].fit
    marks = lambda axes: [line for line in axes.lines if line.get_label() == "diverged"]
    assert not marks(axes_of(results)["all trials"])
    (line,) = marks(axes_of([*results, gone])["all trials"])
    assert list(line.get_xdata()) == [1e4]
    row = next(row for row in report.of([*results, gone]).rows if row.diverged)
    assert (row.count, row.diverged) == (3, 1)


def test_trials_without_a_result_are_left_out_and_counted():
    results = sweeps.iso_flop(0.01)
    half = [dataclasses.replace(r, state="running") if i == 5 else r for i, r in enumerate(results)]
    made = report.of(half)
    assert len(made.points) == len(results) - 1
    assert report.lines(made)[0] == "1 of 75 trials have no result, and are left out"


def test_fits_with_too_few_points_are_refused_and_the_rest_is_drawn():
    results = sweeps.iso_flop(0.01, budgets=sweeps.BUDGETS[:2], systems=("one", "other"))
    few = [r for r in results if r.labels["system"] == "one" or r.unique_parameters < 3e4]
    made = report.of(few)
    assert "one: has a minimum at 2 budgets, and a power law takes 3" in made.refused
    assert "other, training FLOPs 1e+10: has 2 sizes, and a parabola takes 3" in made.refused
    assert all(valley.fit for valley in made.families[0][0].valleys)
    panels = axes_of(few)
    assert {"one", "other", "least loss", "unique parameters of the least loss"} <= set(panels)
    assert all(panel.lines for panel in panels.values())


def test_costs_that_are_not_known_are_named_and_not_fitted():
    results = sweeps.iso_flop(0.01, systems=("one", "other"))
    unknown = [
        dataclasses.replace(r, unique_parameters=0, training_flops=float("nan"))
        if r.labels["system"] == "one"
        else r
        for r in results
    ]
    made = report.of(unknown)
    assert made.refused[0] == "one: the training FLOPs of 15 trials are not known"
    assert family(unknown, 1) == family(results, 1)
    json.dumps(report.to_json(made), allow_nan=False)
    assert axes_of(unknown)


def test_other_labels_have_a_panel_each_and_a_ranking():
    losses = {"cycle": 2.2, "sequence": 2.0, "none": 2.1}
    results = [
        sweeps.result(f"{name}{seed}", {"sharing": name, "seed": seed}, loss + 0.01 * seed)
        for name, loss in losses.items()
        for seed in (0, 1)
    ]
    gone = [sweeps.result(f"gone{seed}", {"sharing": "x", "seed": seed}, None) for seed in (0, 1)]
    made = report.of([*results, *gone])
    assert [row.labels["sharing"] for row in made.rows] == ["sequence", "none", "cycle", "x"]
    assert [row.rank for row in made.rows] == [1, 2, 3, 0]
    assert made.rows[0].mean == pytest.approx(2.005)
    assert made.families == []
    (axes,) = axes_of([*results, *gone]).values()
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "cycle",
        "none",
        "sequence",
        "x",
    ]


def test_trials_without_labels_are_known_by_the_fields_in_which_they_differ():
    rates, seeds = (1e-3, 2e-3, 4e-3), (0, 1)
    field = "optimizer.learning_rate"
    results = [
        sweeps.result(
            f"{rate}{seed}",
            {},
            2 + abs(i - 1) + 0.01 * seed,
            overrides={field: rate, "train.seed": seed, "data.seed": seed, "train.num_steps": 5},
        )
        for i, rate in enumerate(rates)
        for seed in seeds
    ]
    found = family(results)
    assert set(found.valleys[0].points[0].labels) == {"learning_rate", "seed"}
    assert found.valleys[0].fit.best.value == pytest.approx(2e-3)


def test_trials_of_equal_labels_are_told_apart_by_the_fields_in_which_they_differ():
    """Else another learning rate would count as another seed."""
    field, found = "optimizer.learning_rate", []
    for index, (system, rate) in enumerate([("x", 1e-3), ("x", 2e-3), ("y", 1e-3)]):
        given = {field: rate, "train.seed": index}
        found.append(sweeps.result(str(index), {"system": system}, 2.0 + rate, overrides=given))
    named = [dataclasses.replace(r, labels={**r.labels, "seed": i}) for i, r in enumerate(found)]
    for results in (found, named):
        assert [row.labels for row in report.of(results).rows] == [
            {"learning_rate": 1e-3, "system": "x"},
            {"learning_rate": 1e-3, "system": "y"},
            {"learning_rate": 2e-3, "system": "x"},
        ]
        assert [point.labels["seed"] for point in report.of(results).points] == [0, 1, 2]
    seeds = [dataclasses.replace(r, overrides={"train.seed": i}) for i, r in enumerate(named)]
    assert {tuple(row.labels) for row in report.of(seeds).rows} == {("system",)}
    bases = [dataclasses.replace(found[0], config=name, name=name) for name in ("a:tiny", "b:tiny")]
    assert [row.labels for row in report.of(bases).rows] == [{"base": "a:tiny"}, {"base": "b:tiny"}]


@pytest.mark.parametrize("labels", [{}, {"system": "x"}, {"seed": 1}])
def test_one_trial_is_drawn(labels):
    (axes,) = axes_of([sweeps.result("a", labels, 2.0)]).values()
    assert axes.lines and axes.get_title() == f"loss by {'seed' if 'seed' in labels else 'trial'}"


def test_a_model_that_looks_ahead_is_compared_by_its_causal_loss():
    causal = {"validation_loss": 1.0, "validation_loss_causal": 2.5}
    results = [sweeps.result("a", {"sharing": "x"}, 2.0), sweeps.result("b", {"sharing": "y"}, 1.0)]
    results[1] = dataclasses.replace(results[1], metrics=causal)
    assert [row.mean for row in report.of(results).rows] == [2.0, 2.5]


def test_a_sweep_without_results_has_no_report():
    waiting = [dataclasses.replace(r, state="pending", metrics={}) for r in sweeps.rates(0.0)]
    with pytest.raises(DataError, match="none of the 15 trials has finished with a loss"):
        report.of(waiting)


@pytest.fixture
def swept(tmp_path):
    """Returns the directory of a sweep whose six trials have ended."""
    place = tmp_path / "swept"
    trials = tuple(
        Trial(f"trial{i}", "vanilla:tiny", {"train.seed": i}, {"sharing": "ab"[i % 2], "seed": i})
        for i in range(6)
    )
    directory.write(place, Declaration("vanilla:tiny", "", {}, trials, None), {})
    for i, trial in enumerate(trials):
        folder = place / "trials" / trial.name
        row = {"step": 3, "loss": 2.0, "validation_loss": 2.0 + 0.1 * i}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        code, why = (4, "step 2: the loss is nan") if i == 5 else (0, "")
        (folder / "end.json").write_text(json.dumps({"code": code, "why": why, "time": 1.0}))
    return place


def test_the_command_writes_a_picture_and_strict_json_beside_it(swept, tmp_path, capsys):
    assert cli.main(["sweep", "report", f"--workdir={swept}", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    written = json.loads((swept / "report.json").read_text(), parse_constant=pytest.fail)
    assert printed == {"picture": str(swept / "report.png"), **written}
    assert (swept / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [row["labels"]["sharing"] for row in written["rows"]] == ["a", "b"]
    assert written["trials"][5]["loss"] is None
    assert cli.main(["sweep", "report", f"--workdir={swept}", f"--out={tmp_path}/b.svg"]) == 0
    assert "<svg" in (tmp_path / "b.svg").read_text()
    assert "1  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.txt", "ends in none of .png, .svg, .pdf"),
        ("missing/a.png", "there is no folder"),
        ("there.png", "there.png is there already; give a new file"),
        ("data.png", "data.json is there already; give a new file"),
    ],
)
def test_a_place_that_is_refused_is_named_in_one_line(swept, tmp_path, capsys, out, message):
    for name in ("there.png", "data.json"):
        (tmp_path / name).write_text("mine")
    assert cli.main(["sweep", "report", f"--workdir={swept}", f"--out={tmp_path / out}"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert (tmp_path / "there.png").read_text() == (tmp_path / "data.json").read_text() == "mine"
