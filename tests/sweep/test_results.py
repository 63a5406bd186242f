"""What status and results say of trials that have ended."""

import json
import math

import pytest

from tests.helpers.damage import STRANGE


def test_status_says_why_in_a_table_and_as_one_object(sweep, tmp_path):
    sweep(code=1, **{"1_0": "no data"})
    table, _ = sweep("status")
    assert "data.path: there is none" in table and "3 trials: 2 finished, 1 failed" in table
    assert "optimizer.learning_rate" in table and "failed: data.path" in table
    shown = json.loads(sweep("status", "--json")[0])
    assert shown["counts"] == {"finished": 2, "failed": 1}
    rows = {row["overrides"]["optimizer.learning_rate"]: row for row in shown["trials"]}
    assert rows[1]["state"] == "failed" and rows[1]["why"] == "data.path: there is none"
    assert rows[0.01]["step"] == rows[0.01]["num_steps"] == 3 and rows[0.01]["job"] is None
    (tmp_path / "s" / "submissions").mkdir()
    (tmp_path / "s" / "submissions" / "copy.json").write_text("{")
    assert json.loads(sweep("status", "--json")[0]) == shown, "that is none of ours"


def test_results_are_ranked_and_have_a_column_for_all_that_trials_have(sweep, tmp_path):
    sweep(**{"0_1": "diverge"})
    shown = json.loads(sweep("results", "--json")[0])
    rates = [row["overrides"]["optimizer.learning_rate"] for row in shown["trials"]]
    assert rates == [0.01, 0.1, 1] and shown["metric"] == "validation_loss"
    best = shown["trials"][0]
    assert best["metrics"] == {
        "loss": 0,
        "validation_loss": pytest.approx(1 / 3),
        "best_validation_loss": pytest.approx(1 / 3),
    }
    assert best["curve"] == [[1, 1], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert best["tokens"] == 3 * 8 * 16 and best["seconds"] == 1
    assert best["training_flops"] > 0 and best["unique_parameters"] > 0
    sweep("results", f"--csv={tmp_path / 'all.csv'}")
    header, *rows = (tmp_path / "all.csv").read_text().splitlines()
    assert header.startswith("name,state,config,steps,tokens,") and len(rows) == 3
    assert "config.optimizer.learning_rate" in header and header.endswith(",why")
    assert rows[1].endswith("step 1: loss nan")
    assert sweep("results", "--csv=-")[0].splitlines() == [header, *rows]
    table, _ = sweep("results", "--metric=loss")
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["1", "2", "3"]
    _, said = sweep("results", "--metric=los", code=2)
    assert said.count("\n") == 1 and "validation_loss" in said


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path, sweep):
    sweep()
    path = next((tmp_path / "s" / "trials").iterdir()) / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": NaN, "validation_loss": Infinity}\n')
    shown, _ = sweep("results", "--json")
    assert "NaN" not in shown and "Infinity" not in shown
    assert json.loads(shown)["trials"][-1]["metrics"]["loss"] is None, "which comes last"
    shown, _ = sweep("status", "--json")
    assert "NaN" not in shown and "Infinity" not in shown
    path.write_text('{"step": 2, "validation_loss": 2}\n{"step": 3, "validation_loss": null}\n')
    path.open("a").write('{"step": 4, "validation_loss": true, "loss": "x", "seconds_step": "y"}\n')
    (row,) = (r for r in json.loads(sweep("results", "--json")[0])["trials"] if r["steps"] == 4)
    assert row["curve"] == [[2, 2]] and row["metrics"]["validation_loss"] == 2
    path.unlink()
    path.mkdir()
    _, said = sweep("results", code=2)
    assert said == f"recursia: {path}: cannot be read (Is a directory)\n"


def test_what_no_trial_writes_is_passed_over_or_refused_by_its_name(tmp_path, sweep):
    sweep()
    place = tmp_path / "s" / "sweep.json"
    whole, strange = json.loads(place.read_text()), (*STRANGE, 10**400, math.nan, [[1]])
    row = {"step": 3, "loss": 2.0, "validation_loss": 1.0, "seconds_step": 0.5}
    rows = [json.dumps(row | {name: value}) for name in row for value in strange]
    path = tmp_path / "s" / "trials" / whole["trials"][0] / "metrics.jsonl"
    path.write_text("\n".join([*rows, "[" * 100_000, json.dumps(row), ""]))
    (metrics,) = (
        row["metrics"]
        for row in json.loads(sweep("results", "--json")[0])["trials"]
        if row["name"] == whole["trials"][0]
    )
    assert metrics["loss"] == 2 and metrics["validation_loss"] == 1
    assert "3/3" in sweep("status")[0] and sweep("results", "--csv=-")
    for name in ("", "..", "../s", "a/b", "a\0", "\ud800", "x" * 300, whole["trials"][1]):
        place.write_text(json.dumps({**whole, "trials": [*whole["trials"][1:], name]}))
        for verb in ("status", "results"):
            assert "trials takes names of directories, each once" in sweep(verb, code=2)[1]
    path.unlink()
    path.mkdir()
    place.write_text(json.dumps(whole))
    assert f"{path}: cannot be read (Is a directory)" in sweep("results", code=2)[1]


def test_results_outlive_the_file_that_declares_them(sweep, tmp_path, command):
    sweep("--runner=print")
    (tmp_path / "tiny.py").unlink()
    shown = json.loads(command("sweep", "results", "--json", f"--workdir={tmp_path / 's'}")[0])
    assert [row["state"] for row in shown["trials"]] == ["pending"] * 3
    assert shown["trials"][0]["unique_parameters"] == 0
