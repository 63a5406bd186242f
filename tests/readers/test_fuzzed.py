"""Each reader, fuzzed by the branches that it takes: it refuses in one line, in bounded memory."""

import subprocess
import sys

import pytest

from tests.helpers.readers import CASES

pytest.importorskip("atheris", reason="atheris is made for Linux on x86-64")
pytestmark = pytest.mark.slow
RUNS = 1000


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """The folder with what was said of each case, and the exit code of each."""
    folder = tmp_path_factory.mktemp("fuzzed")
    command = [sys.executable, "-m", "tests.helpers.fuzzing", str(folder), str(RUNS), *CASES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return folder, dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_a_fuzzed_reader_refuses_in_one_line(fuzzed, name):
    folder, codes = fuzzed
    said = (folder / f"{name}.log").read_text(errors="replace")
    assert codes[name] == "0" and f"#{RUNS}\tDONE" in said, said[-3000:]
