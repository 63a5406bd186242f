"""A run survives every kind of fault, one after the other."""

import json
import subprocess
import sys

import pytest

from tests.helpers import exhaustive
from tests.helpers.benchmarks import ROOT
from tests.helpers.cluster import environment
from tests.helpers.runs import values, write_config, write_text

# Of a process, its files and its machine; each kind of file has its own tests in tests/train.
FEW = ["SIGKILL in a save", "SIGTERM, SIGUSR1, Ctrl-C", "full disk", "compiled program cut short"]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [FEW, exhaustive([])], ids=["a few", "all"])
def test_a_run_survives_every_kind_of_fault_and_ends_equal_to_the_bit(tmp_path, kinds):
    write_text(tmp_path)
    config = write_config(tmp_path / "tiny.py", values(tmp_path, eval={"prompts": ["red"]}))
    script = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--minutes=0"]
    sizes = [f"--config={config}", "--broken_steps=500", f"--out={tmp_path / 'soak.json'}"]
    sizes += [f"--kind={kind}" for kind in kinds]
    how = {"env": {**environment(1), "PYTHONPATH": str(ROOT)}, "capture_output": True}
    done = subprocess.run([*script, *sizes], text=True, **how)
    found = json.loads((tmp_path / "soak.json").read_text())
    assert done.returncode == 0 and not found["wrong"], json.dumps(found["wrong"], indent=2)
    assert all(row["survived"] == row["injected"] > 0 for row in found["kinds"].values())
    assert [run["equal"] for run in found["runs"]] == [True]
