"""A run that is killed at any instant and started again ends where the unbroken one ends."""

import random
import signal
import subprocess
import sys

import pytest

from tests.helpers import exhaustive
from tests.helpers.kills import KILLED, SEED, survives
from tests.helpers.runs import command, differences, saved, train


@pytest.mark.parametrize("count", [20, exhaustive(200)])
def test_a_run_killed_at_any_instant_ends_where_the_unbroken_one_does(
    folder, unbroken, tmp_path, compiled_once, count
):
    quiet = "--config.log.sinks="

    def start(workdir):
        assert train(folder, workdir, quiet) == 0

    survives(start, unbroken, tmp_path, count, "expert choice")


@pytest.mark.slow
def test_a_process_killed_for_real_leaves_the_same(folder, unbroken, tmp_path):
    rng, codes = random.Random(SEED), []
    for most in (180, 120):  # an unbroken run has 200 operations
        number = rng.randrange(most)
        script = [sys.executable, "-c", KILLED, str(number), str(tmp_path)]
        done = subprocess.run([*script, *command(folder, tmp_path)], capture_output=True, text=True)
        codes.append((number, done.returncode, saved(tmp_path)))
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    assert codes[0][1] == -signal.SIGKILL
    assert train(folder, tmp_path) == 0
    wrong = differences(tmp_path, unbroken)
    assert not wrong, f"seed {SEED}: differs in {wrong} after {codes}"
