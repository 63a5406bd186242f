"""What one of several processes cannot read ends all of them alike, and costs no step."""

import pytest

from tests.helpers import cluster, exhaustive
from tests.helpers.cluster import SECTIONS, START, alone, train
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

pytestmark = pytest.mark.slow
STEPS = 12
SHARD = """
from recursia.data.loader import Loader
from recursia.errors import DataError

def batch(self, number, real=Loader.batch):
    if number >= {}:
        raise DataError("shard 7: cannot be read.")
    return real(self, number)

Loader.batch = batch
"""
ROWS = """
from recursia import scores
from recursia.errors import DataError

def batches(*arguments, real=scores.evaluation_batches):
    found = real(*arguments)
    for _ in range({}):
        yield next(found)
    raise DataError("shard 7: cannot be read.")

scores.evaluation_batches = batches
"""
SPLIT = """
from recursia import scores
from recursia.errors import DataError

def windows(*arguments, **named):
    raise DataError("shard 7: cannot be read.")

scores.Windows = windows
"""
FAULTS = {
    "the first batch": (SHARD.format(1), []),
    "a later batch": (SHARD.format(7), [6, 7]),
    "the last batch": (SHARD.format(STEPS - 1), [STEPS - 2, STEPS - 1]),
    "a validation, opened": (SPLIT, [5]),
    "a validation, later": (ROWS.format(1), [5]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unreadable")
    write_text(folder)
    sections = SECTIONS | {"train": {"num_steps": STEPS, "batch_size": 4}}
    sections |= {"checkpoint": {"every_steps": 0}, "eval": {"every_steps": 5}}
    write_config(folder / "fixed.py", values(folder, "fixed", **sections))
    return folder


@pytest.fixture(scope="module")
def unbroken(folder):
    with pytest.MonkeyPatch.context() as patch:
        alone(patch, 2, train(folder, folder / "unbroken"))  # which two processes equal
    return folder / "unbroken"


@pytest.mark.parametrize(
    "fault", [each if "later" in each else exhaustive(each) for each in FAULTS]
)
def test_what_one_process_cannot_read_costs_no_step(folder, unbroken, tmp_path, fault):
    script, steps = FAULTS[fault]
    arguments = train(folder, tmp_path / "run")
    started = {"count": 2, "scripts": {1: script + START}}
    # Without validations before it, the step after which all stop is that of the fault.
    every = [] if steps == [5] else ["--config.eval.every_steps=0"]
    processes = cluster.start(tmp_path / "output", [*arguments, *every], **started)
    assert cluster.finish(processes) == [3, 3]
    line, other = processes[1].said[-1], processes[0].said[-1]
    assert "shard 7: cannot be read" in line and "process 1 could not go on" in other
    assert not any("Traceback" in said for process in processes for said in process.said)
    found = saved(tmp_path / "run")
    assert len(found) == bool(steps)
    for step in found:
        assert step in steps and f"saved step {step}, from which the same command resumes" in line
    if "later" not in fault:
        return  # the others leave what these do, or nothing
    cluster.run(tmp_path / "output", arguments, count=2)
    assert rows(tmp_path / "run")[-1]["step"] == STEPS
    if not every:
        assert rows(tmp_path / "run") == rows(unbroken)
    assert is_equal(state_of(tmp_path / "run", STEPS), state_of(unbroken, STEPS))
