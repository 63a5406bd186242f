"""The picture of an evaluation has a panel for each question that its result answers."""

import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from recursia.errors import StorageError
from recursia.evaluate import picture, printout, variants
from tests.helpers.refusals import refused

MODES = ("eval", "causal")


def result(depths=(1, 2, 3), modes=MODES, capacities=(), tasks=("piqa", "arc_easy"), has_text=True):
    """Returns a result such as `tables.evaluate` gives."""
    ways = [{"depth": depth, "mode": mode} for depth in depths for mode in modes]
    ways += [{"depth": depths[-1], "mode": "eval", "capacity": list(c)} for c in capacities]
    ways = [{**way, "is_beyond": way["depth"] > 2} for way in ways]
    both = lambda row: {"causal_gap": 0.1} if row["mode"] == "causal" and len(modes) == 2 else {}
    common = lambda row: {**row, **both(row), "mean_depth": 1.5, "cache_bytes_per_token": 512.0}
    found = {"workdir": "runs/a", "step": 5, "trained_depth": 2}
    found["config"] = {"model": {"depth": {"capacity": (1.0, 0.7, 0.4)}}}
    if has_text:
        text = {"nats_per_token": 2.0, "bits_per_byte": 3.0, "tokens": 9}
        found |= {"tokens": 9, "table": [{**common(row), **text} for row in ways]}
    if tasks:
        scores = {"metrics": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.4}, "num_samples": 2}
        rows = [{**common(row), "task": name, **scores} for row in ways for name in tasks]
        found |= {"tasks": rows, "suite": {"tasks": list(tasks)}}
    return found


def titles(found):
    return [axes.get_title() for axes in picture.draw(found).axes]


def test_there_is_a_panel_for_what_the_result_has():
    loss, scores = "loss of the text against depth", "tasks against depth"
    gap, gaps = (f"{of}, causal minus published routing" for of in ("loss", "tasks"))
    depth, cache = "mean recursions by task", "KV cache against depth"
    assert titles(result()) == [loss, scores, gap, gaps, depth, cache]
    assert titles(result(modes=("eval",))) == [loss, scores, depth, cache]
    assert titles(result(modes=("causal",), tasks=())) == [loss, depth, cache]
    assert titles(result(has_text=False, modes=("eval",))) == [scores, depth, cache]
    capacities = titles(result(capacities=((1.0, 0.5), (1.0, 0.2))))
    more = ["loss of the text against capacity", "tasks against capacity"]
    assert capacities == [loss, scores, *more, gap, gaps, depth, cache]
    fixed = result(modes=("eval",), tasks=())
    fixed["table"] = [{**row, "mean_depth": row["depth"]} for row in fixed["table"]]
    assert titles(fixed) == [loss, cache]  # recursions are the depth, which needs no panel


def test_tasks_of_different_metrics_have_panels_of_their_own():
    found = result(modes=("eval",))
    for row in found["tasks"]:
        row["metrics"] = {"acc": 0.5} if row["task"] == "piqa" else {"perplexity": 9.0}
    scores = [axes for axes in picture.draw(found).axes if axes.get_title().startswith("tasks")]
    assert [axes.get_ylabel().split(",")[0] for axes in scores] == ["acc", "perplexity"]


def test_lines_are_of_depths_and_the_trained_one_is_marked():
    loss, scores, *_ = picture.draw(result()).axes
    legend = lambda axes: set(axes.get_legend_handles_labels()[1])
    assert legend(loss) == {"eval", "causal", "trained depth", "beyond training"}
    assert legend(scores) == {"piqa", "arc_easy", *legend(loss)}
    drawn = [list(line.get_xdata()) for line in loss.lines]
    assert drawn == [[1, 2, 3], [1, 2, 3], [2, 2]]
    (shaded,) = loss.patches
    assert shaded.get_x() == 2 and shaded.get_x() + shaded.get_width() > 3
    within = picture.draw(result(depths=(1, 2))).axes[0]
    assert not within.patches and "beyond training" not in legend(within)


def test_capacities_stand_beside_the_trained_one():
    found = result(depths=(1, 2), capacities=((1.0, 0.5, 0.2), (1.0, 0.2, 0.1)))
    panels = {axes.get_title(): axes for axes in picture.draw(found).axes}
    line, mark = panels["loss of the text against capacity"].lines
    np.testing.assert_allclose(np.array(line.get_xdata(), float), [0.6, 0.75, 0.85])
    np.testing.assert_allclose(mark.get_xdata(), [0.85, 0.85])


def test_standard_errors_are_drawn_where_there_are_any():
    errors = lambda axes: [each.has_yerr for each in axes.containers]
    loss, scores, *_ = picture.draw(result(modes=("eval",))).axes
    assert errors(loss) == [False] and errors(scores) == [True, True]


def test_only_tasks_that_were_asked_for_are_drawn_and_at_most_eight():
    found = result(tasks=("mmlu", "mmlu_anatomy"))
    found["suite"]["tasks"] = ["mmlu"]
    assert picture.tasks_shown(found) == ["mmlu"]
    many = result(tasks=tuple(map(str, range(20))))
    assert len(picture.tasks_shown(many)) == 8
    assert picture.tasks_shown(result(tasks=())) == []


@pytest.mark.slow
def test_a_picture_is_written_whole(tmp_path):
    for suffix in ("png", "svg", "pdf"):
        picture.write(result(), tmp_path / f"a.{suffix}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.svg", "a.pdf"}


def test_a_picture_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        picture.write({"workdir": "a"}, tmp_path / "a.png")
    with refused(StorageError, "b/a.png: cannot be written"):
        picture.write(result(), tmp_path / "b" / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_table_shows_each_variant_with_its_error_gap_and_cache():
    first, _, head, *lines = printout.render(result(has_text=False, tasks=("piqa",))).splitlines()
    assert first == "step 5, trained at depth 2"
    columns = ["acc", "acc_norm", "causal gap", "recursions/token", "cache bytes/token"]
    assert re.split("  +", head) == ["piqa, 2 rows", *columns]
    cells = [re.split("  +", line.strip()) for line in lines]
    assert cells[0] == ["depth 1, eval", "0.5000 \u00b1 0.1000", "0.4000", "1.500", "512"]
    assert cells[1][0] == "depth 1, causal" and cells[1][3] == "+0.1000"
    assert [each[0] for each in cells[4:]] == ["depth 3 (beyond), eval", "depth 3 (beyond), causal"]
    assert len({len(line) for line in lines}) == 1  # all columns are aligned


def test_the_table_has_a_block_for_the_text_and_leaves_out_columns_that_are_empty():
    lines = printout.render(result(modes=("eval",), tasks=())).splitlines()
    columns = ["bits/byte", "nats/token", "recursions/token", "cache bytes/token"]
    assert re.split("  +", lines[2]) == ["text, 9 tokens", *columns]
    assert len(lines) == 6


def test_the_first_metric_of_a_task_is_its_accuracy_where_there_is_one():
    assert variants.main_metric({"metrics": {"perplexity": 2.0, "acc": 0.1}}) == "acc"
    assert variants.main_metric({"metrics": {"rare": 2.0}}) == "rare"
    assert variants.main_metric({"metrics": {}}) == ""
