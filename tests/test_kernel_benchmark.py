"""The benchmark of kernels checks what it times, and goes on where it was stopped."""

import dataclasses
import json

import pytest

from tests.helpers.benchmarks import benchmark

ONE = "grouped matmul moeut:244m up forward"


@pytest.mark.slow
def test_a_row_is_appended_once(tmp_path, monkeypatch):
    kernels, out = benchmark("kernels"), tmp_path / "rows.jsonl"
    words = ["kernels.py", "--cut=128", "--rounds=1", f"--only={ONE}", f"--out={out}"]
    monkeypatch.setattr("sys.argv", words)
    for _ in range(2):
        assert kernels.main() == 0
        (row,) = map(json.loads, out.read_text().splitlines())
    assert row["case"] == ONE and row["is_same_twice"] and row["reached"] is None
    assert {len(times) for times in row["raw_seconds"].values()} == {1}
    assert row["seconds"].keys() == row["error_over_float32"].keys() == {"ours", "ragged_dot"}


@pytest.mark.exhaustive
def test_a_wrong_kernel_is_not_timed():
    kernels = benchmark("kernels")
    case = next(each for each in kernels.experts(128) if each.name == ONE)
    right = case.candidates["ours"]
    wrong = dataclasses.replace(case, candidates={"ours": lambda *x: 1.1 * right(*x)})
    assert kernels.checked(case)["ours"] < kernels.TOLERANCE
    with pytest.raises(AssertionError, match=ONE):
        kernels.checked(wrong)
