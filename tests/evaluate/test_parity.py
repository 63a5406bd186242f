"""`recursia parity`: exit codes and keys. What it finds is tests/golden's."""

import json
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FILES = [str(GOLDEN / f"{name}.npz") for name in ("recursive_cycle", "mor_expert")]
KEYS = {"ok", "logits_max_abs", "loss_max_abs", "gradient_max_rel"}


@pytest.fixture
def broken(tmp_path):
    """A file whose authors would have had other logits."""
    with np.load(FILES[0]) as file:
        arrays = dict(file)
    arrays["logits"] = arrays["logits"] + np.float32(0.01)
    np.savez(tmp_path / "broken.npz", **arrays)
    return str(tmp_path / "broken.npz")


@pytest.mark.slow
def test_files_that_agree_exit_with_0(command):
    out, err = command("parity", *FILES, "--json")
    assert all(line.startswith("comparing ") for line in err.splitlines())
    results = json.loads(out)
    assert list(results) == FILES
    for result in results.values():
        assert result.keys() >= KEYS and result["ok"] is True
        assert all(result[key] < 1e-4 for key in KEYS - {"ok"})


def test_a_file_that_differs_exits_with_1(command, broken):
    result = json.loads(command("parity", broken, "--json", code=1)[0])[broken]
    assert result["ok"] is False
    assert abs(result["logits_max_abs"] - 0.01) < 1e-4


def test_a_file_that_is_missing_exits_with_3_and_hides_no_other(command, broken, tmp_path):
    missing = str(tmp_path / "missing.npz")
    results = json.loads(command("parity", missing, broken, "--json", code=3)[0])
    assert "no such file" in results[missing]["error"] and not results[missing]["ok"]
    assert not results[broken]["ok"]
    out, _ = command("parity", missing, broken, code=3)
    assert [line.split()[0] for line in out.splitlines()] == ["FAIL", "FAIL"]
