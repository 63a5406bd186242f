"""The picture of an evaluation has a panel for each question that its result answers."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from recursia.evaluate import picture, tables

MODES = ("eval", "causal")


def result(depths=(1, 2, 3), modes=MODES, capacities=(), tasks=("piqa", "arc_easy"), has_text=True):
    """Returns a result such as `tables.evaluate` gives."""
    variants = [{"depth": depth, "mode": mode} for depth in depths for mode in modes]
    variants += [{"depth": depths[-1], "mode": "eval", "capacity": list(c)} for c in capacities]
    both = lambda row: {"causal_gap": 0.1} if row["mode"] == "causal" and len(modes) == 2 else {}
    common = lambda row: {**row, **both(row), "mean_depth": 1.5, "cache_bytes_per_token": 512.0}
    found = {"workdir": "runs/a", "step": 5, "trained_depth": 2}
    found["config"] = {"model": {"depth": {"capacity": (1.0, 0.7, 0.4)}}}
    if has_text:
        text = {"nats_per_token": 2.0, "bits_per_byte": 3.0, "tokens": 9}
        found |= {"tokens": 9, "table": [{**common(row), **text} for row in variants]}
    if tasks:
        scores = {"metrics": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.4}, "num_samples": 2}
        rows = [{**common(row), "task": name, **scores} for row in variants for name in tasks]
        found |= {"tasks": rows, "suite": {"tasks": list(tasks)}}
    return found


def titles(found):
    return [axes.get_title() for axes in picture.draw(found).axes]


def test_there_is_a_panel_for_what_the_result_has():
    text, tasks = "loss against depth", "tasks against depth"
    depth, gap, cache = "recursions by task", "causal less published", "cache"
    assert titles(result()) == [text, tasks, depth, gap, cache]
    assert titles(result(modes=("eval",))) == [text, tasks, depth, cache]
    assert titles(result(modes=("causal",), tasks=())) == [text, cache]
    assert titles(result(has_text=False, modes=("eval",))) == [tasks, depth, cache]
    capacities = titles(result(capacities=((1.0, 0.5), (1.0, 0.2))))
    more = ["loss against capacity", "tasks against capacity"]
    assert capacities == [text, tasks, depth, gap, *more, cache]


def test_lines_are_of_depths_and_the_trained_one_is_marked():
    loss, tasks, *_ = picture.draw(result()).axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in loss.lines}
    assert drawn == {"eval": [1, 2, 3], "causal": [1, 2, 3], "trained": [2, 2]}
    names = [line.get_label() for line in tasks.lines]
    assert names == [
        *(f"{task}, acc, {mode}" for task in ("piqa", "arc_easy") for mode in MODES),
        "trained",
    ]


def test_capacities_stand_beside_the_trained_one():
    found = result(depths=(1, 2), capacities=((1.0, 0.5, 0.2), (1.0, 0.2, 0.1)))
    panels = {axes.get_title(): axes for axes in picture.draw(found).axes}
    (line,) = panels["loss against capacity"].lines
    np.testing.assert_allclose(line.get_xdata(), [0.6, 0.75, 0.85])


def test_only_tasks_that_were_asked_for_are_drawn_and_at_most_eight():
    found = result(tasks=("mmlu", "mmlu_anatomy"))
    found["suite"]["tasks"] = ["mmlu"]
    assert picture.tasks_shown(found) == ["mmlu"]
    many = result(tasks=tuple(map(str, range(20))))
    assert len(picture.tasks_shown(many)) == 8
    assert picture.tasks_shown(result(tasks=())) == []


def test_a_picture_is_written_whole(tmp_path):
    for suffix in ("png", "svg", "pdf"):
        picture.write(result(), tmp_path / f"a.{suffix}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.svg", "a.pdf"}


def test_the_table_shows_each_task_with_its_error_and_gap():
    lines = tables.render(result(has_text=False)).splitlines()
    assert lines[0] == "step 5" and lines[3].startswith("piqa, 2 rows")
    assert lines[3].split()[3:] == ["acc", "acc_norm", "recursions/token"]
    assert lines[4].split() == "depth 1, eval 0.5000 \u00b1 0.1000 0.4000 1.500".split()
    assert lines[6].split() == ["causal", "gap", "+0.1000"]
    assert sum("rows" in line for line in lines) == 2


def test_the_first_metric_of_a_task_is_its_accuracy_where_there_is_one():
    assert tables.main_metric({"metrics": {"perplexity": 2.0, "acc": 0.1}}) == "acc"
    assert tables.main_metric({"metrics": {"rare": 2.0}}) == "rare"
    assert tables.main_metric({"metrics": {}}) == ""
