"""What the pages say of benchmarks is what their result files say."""

import json

import pytest

from docs import pods
from recursia import accounting, config
from recursia.budget import vocab_size
from tests.helpers.benchmarks import ROOT, benchmark, page, result


def test_the_table_of_families_is_their_result():
    shown = page("families").partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert shown == benchmark("families").table(result("families")["rows"])


def test_every_system_was_trained_at_equal_flops_with_three_seeds():
    rows = result("families")["rows"]
    assert rows.keys() == set(benchmark("families").every_system())
    spent = rows["vanilla:tiny"]["training_flops"]
    for row in rows.values():
        assert row["training_flops"] == pytest.approx(spent, rel=0.02)
        assert len(row["seeds"]) == 3


def test_an_interval_is_that_of_a_mean_by_students_t():
    percentile = 4.303  # the 97.5th, of two degrees of freedom
    found = benchmark("families").interval([1.0, 2.0, 3.0])
    assert found == pytest.approx(percentile / 3**0.5, rel=1e-3)


def test_every_family_was_trained_as_it_is():
    for name, row in result("families")["rows"].items():
        run = config.load(name, {})
        counted = accounting.unique_parameters(run.model.sized(vocab_size(run)))
        assert counted == row["unique_parameters"]


def test_the_table_of_length_generalisation_is_its_result():
    found, shown = result("length_generalisation"), page("length_generalisation")
    assert benchmark("length_generalisation").table(found) in shown
    for run in found["runs"]:
        assert f"{run['unique_parameters']:,}" in shown


def test_the_tables_of_decoding_are_their_result():
    found = result("decode")
    shown = page("decoding").partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert shown == benchmark("decode").table(found)


def test_the_tables_of_folding_are_their_result():
    made, found, shown = benchmark("folding"), result("folding"), page("weights")
    assert all(
        table(found) in shown for table in (made.table, made.keys, made.shared_heads, made.atoms)
    )


def test_slots_that_are_refilled_by_depth_give_most_of_what_early_exits_promise():
    for row in result("decode")["batching"]["rows"]:
        assert 1.2 < row["recursions_over_mean"] < row["recursions"]
        assert row["depth_over_sequence"]["of_recursions_over_mean"] >= 0.9


def test_the_table_of_performance_is_its_result():
    found, shown = result("train_step"), page("performance")
    rivals = {"dense": "dense", "full_capacity": "capacity 1"}
    for row in found["rows"]:
        for rival, over in row["over"].items():
            numbers = [over[name] for name in ("flop_ratio", "time_ratio", "time_over_flops")]
            cells = " | ".join(f"{number:.2f}" for number in numbers)
            assert f"| `{row['preset']}` over {rivals[rival]} | {cells} |" in shown
    assert found["command"] in shown.replace(" \\\n    ", " ")


@pytest.mark.parametrize("name", ("", "_shared", "_all"))
def test_the_tables_beside_pytorch_are_their_results(name):
    found, shown = result(f"train_step_torch{name}"), page("performance")
    for row in found["rows"]:
        cells = []
        for rival in ("torch", "torch_fast"):
            over = row["over"][rival]
            low, high = over["time_ratio_quartiles"]
            cells.append(f"{over['time_ratio']:.2f} ({low:.2f} to {high:.2f})")
        assert f"| `{row['preset']}` | {' | '.join(cells)} |" in shown


def test_the_table_of_foreign_keys_is_its_result():
    for row in result("foreign_keys", "")["rows"]:
        cells = [", ".join(map(str, row["shape"]))]
        for what in ("temporaries", "hbm_traffic"):
            ours, library = (row[who][what] / 1e9 for who in ("ours", "library"))
            cells.append(f"{ours:.2f}, {library:.2f} GB")
        assert f" | {' | '.join(cells)} |\n" in page("kernels")


def test_the_table_of_the_soak_is_its_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    shown = page("reliability").partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert shown == benchmark("soak").table(result("soak"))
    again = result("soak_busy")
    count = sum(row["injected"] for row in again["kinds"].values())
    assert f"brought {count}\nfaults to three runs" in page("reliability")
    assert not again["wrong"] and [run["equal"] for run in again["runs"]] == [True] * 3


def test_the_page_of_large_runs_is_written_from_its_results():
    assert pods.PAGE.read_text() == pods.page()
    assert set(pods.COMMANDS) == set(json.loads(pods.RESULTS.read_text()))


def test_pages_say_what_the_small_checks_found():
    paths = [*(ROOT / "docs" / "systems").glob("*.md"), ROOT / "docs" / "recipes.md"]
    pages = [path.read_text() for path in paths]
    for name, found in result("small_checks")["sweeps"].items():
        about = "".join(text for text in pages if f"`sweeps/{name}:tiny`" in text)
        for row in found["rows"]:
            assert row["count"] == 3 and f"{row['mean']:.3f}" in about, (name, row["labels"])


def test_the_page_of_replicas_says_what_they_lost():
    for row in result("replicas")["rows"]:
        assert len(row["losses"]) == 3
        assert f"| {row['mean']:.3f} ± {row['deviation']:.3f} |" in page("replicas")


QUESTIONS = sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.md"))


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_page_of_a_question_is_its_result(name):
    """Five seeds of every model at every rate, and nothing left out."""
    found, shown = result(f"question_{name}"), page(f"results/{name}")
    table = shown.partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert table == benchmark("questions").table(found)
    assert f"--name={name}" in shown and f"({name}.png)" in shown
    rates = {trial["labels"]["learning_rate"] for trial in found["trials"]}
    assert len(found["trials"]) == 5 * len(rates) * len(found["arms"])
