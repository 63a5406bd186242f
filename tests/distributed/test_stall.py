"""A process that stands still or dies, wherever it does, ends the others in one line."""

import signal
import time

import pytest

from tests.helpers import cluster, exhaustive
from tests.helpers.cluster import SECTIONS, SLOWLY, START, train
from tests.helpers.runs import saved, values, write_config, write_text

pytestmark = pytest.mark.slow
IMPATIENT = """
from recursia import stall
stall.LEAST_SECONDS, stall.SAVE_SECONDS, stall.FIRST_SECONDS = 4, 4, 20
"""
# Process 1 stops itself, as SIGSTOP from outside would stop it, on its way into a function.
STOPPED = """
import importlib, os, signal

module, *inner, attribute = {!r}.split(":")
owner = importlib.import_module(module)
owner = getattr(owner, *inner) if inner else owner
real = getattr(owner, attribute)

def stopped(*arguments, **named):
    os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **named)

setattr(owner, attribute, stopped)
"""
PLACES = {
    "recursia.train.opening:load": "meeting of all processes",
    "recursia.workdir.checkpoint:Checkpoints:save": "save",
    "recursia.scores:evaluation_batches": "batch of a text",
    "recursia.train.validation:Validation:samples": "sample",
}
FEW = ("recursia.workdir.checkpoint:Checkpoints:save",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stall")
    write_text(folder)
    write_config(folder / "fixed.py", values(folder, "fixed", **SECTIONS))
    return folder


def ended(processes, number=None):
    """Returns the last line of process 0, once it has ended with 7; the other is killed."""
    try:
        if number is not None:
            processes[1].popen.send_signal(number)
        assert processes[0].popen.wait(120) == 7, processes[0].said[-20:]
    finally:
        for process in processes:
            process.popen.kill()
            process.popen.wait()
    assert not any("Traceback" in said for said in processes[0].said)
    line = processes[0].said[-1]
    assert line.startswith("recursia: process 0: ") and "run the same command" in line
    return line


@pytest.mark.parametrize("number", [signal.SIGSTOP, exhaustive(signal.SIGKILL)])
def test_a_process_that_stands_still_or_dies_ends_the_other_in_one_line(folder, tmp_path, number):
    every = train(folder, tmp_path / "run", "--config.train.num_steps=24")
    scripts = {i: SLOWLY + IMPATIENT + START for i in range(2)}
    processes = cluster.start(tmp_path / "output", every, count=2, scripts=scripts)
    until = time.monotonic() + cluster.LIMIT_SECONDS
    while not saved(tmp_path / "run") and time.monotonic() < until:
        time.sleep(0.1)
    ended(processes, number)
    if number == signal.SIGSTOP:
        stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
        assert "Thread" in stacks and "loop.py" in stacks
    cluster.run(tmp_path / "output", train(folder, tmp_path / "run"), count=2)


@pytest.mark.parametrize("place", [p if p in FEW else exhaustive(p) for p in PLACES])
def test_wherever_a_process_stands_still_the_other_says_what_it_waits_for(folder, tmp_path, place):
    scripts = {0: IMPATIENT + START, 1: IMPATIENT + STOPPED.format(place) + START}
    arguments = train(folder, tmp_path / "run")
    line = ended(cluster.start(tmp_path / "output", arguments, count=2, scripts=scripts))
    assert f"process 0: no {PLACES[place]} has ended for" in line
    assert "Thread" in (tmp_path / "run" / "stacks-0.txt").read_text()
