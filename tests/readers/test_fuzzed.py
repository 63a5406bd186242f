"""Each reader, fuzzed by the branches that it takes: it refuses in one line, in bounded memory."""

import subprocess
import sys

import pytest

from tests.helpers import exhaustive, slow
from tests.helpers.readers import CASES

pytest.importorskip("atheris", reason="atheris is made for Linux on x86-64")


@pytest.mark.parametrize("runs", [slow(1000), exhaustive(3000)])
def test_a_fuzzed_reader_refuses_in_one_line(tmp_path, runs):
    """One process reads all cases, because it takes long to import what it instruments."""
    command = [sys.executable, "-m", "tests.helpers.fuzzing", str(tmp_path), str(runs), *CASES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    codes = dict(line.split() for line in done.stdout.splitlines())
    said = {name: (tmp_path / f"{name}.log").read_text(errors="replace") for name in CASES}
    fine = {name for name in CASES if codes[name] == "0" and f"#{runs}\tDONE" in said[name]}
    assert not (failed := set(CASES) - fine), {name: said[name][-3000:] for name in failed}
