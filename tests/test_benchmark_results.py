"""What the pages say of benchmarks is what their result files say."""

import importlib.util
import json
import pathlib

import pytest

from recursia import accounting, config
from recursia.budget import vocab_size

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def benchmark(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name):
    return json.loads((RESULTS / f"{name}_cpu.json").read_text())


def test_the_table_of_families_is_their_result():
    page = (ROOT / "docs" / "families.md").read_text()
    shown = page.partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert shown == benchmark("families").table(result("families")["rows"])


def test_families_were_trained_at_equal_flops_with_two_seeds():
    rows = result("families")["rows"]
    spent = rows["vanilla:tiny"]["training_flops"]
    for row in rows.values():
        assert row["training_flops"] == pytest.approx(spent, rel=0.01)
        assert len(row["seeds"]) == 2


def test_every_family_was_trained_as_it_is():
    rows = result("families")["rows"]
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "base", "blocks"}
    assert {name.partition(":")[0] for name in rows} <= files
    for name, row in rows.items():
        run = config.load(name, {})
        assert (
            accounting.unique_parameters(run.model.sized(vocab_size(run)))
            == (row["unique_parameters"])
        )


def test_the_table_of_length_generalisation_is_its_result():
    page = (ROOT / "docs" / "length_generalisation.md").read_text()
    found = result("length_generalisation")
    assert benchmark("length_generalisation").table(found) in page
    for run in found["runs"]:
        assert f"{run['unique_parameters']:,}" in page
