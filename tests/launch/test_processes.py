"""Child processes of the local target: their output, signals, exit codes and restarts."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from recursia.launch import processes
from recursia.launch.targets.local import Local
from tests.helpers.jobs import job


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scripted(Local):
    """A local target that starts shell scripts instead of a run."""

    scripts: tuple[str, ...] = ()

    def _commands(self, job, port):
        return [["sh", "-c", script] for script in self.scripts]


COUNTED = 'echo x >>{0}; [ "$(wc -l <{0})" -gt 2 ] && exit {1}; exit 75'


@pytest.mark.parametrize(
    ("restarts", "ends", "starts", "code"),
    [(0, 0, 1, 75), (1, 0, 2, 75), (2, 0, 3, 0), (9, 0, 3, 0), (9, 4, 3, 4)],
)
def test_a_run_that_was_stopped_starts_again_as_often_as_allowed(
    tmp_path, capfd, restarts, ends, starts, code
):
    target = Scripted(scripts=(COUNTED.format(tmp_path / "starts", ends),))
    assert target.submit(job("", restarts=restarts)) == code
    assert (tmp_path / "starts").read_text().count("x") == starts
    assert capfd.readouterr().err.count("restart") == starts - 1


def test_the_first_process_prints_as_it_is_and_others_with_their_index(capfd):
    target = Scripted(scripts=("echo zero", "echo one; echo more >&2", "echo $COLOUR"))
    assert target.submit(job("", environment={"COLOUR": "red"})) == 0
    out, err = capfd.readouterr()
    assert out == "zero\n"
    assert sorted(err.splitlines()) == ["[1] more", "[1] one", "[2] red"]


@pytest.mark.parametrize(
    ("scripts", "code"),
    [
        (("exit 3", "sleep 0.5; exit 134"), 3),  # the second ended because the first did
        (("sleep 0.5; exit 134", "exit 5"), 5),
        (("exit 0", "kill -9 $$"), 137),
    ],
)
def test_the_code_is_that_of_the_first_that_failed(scripts, code):
    assert Scripted(scripts=scripts).submit(job("", restarts=3)) == code


@pytest.mark.parametrize("listens", ["trap 'exit 75' TERM; ", ""])
def test_a_signal_is_passed_on_and_is_no_reason_to_start_again(listens, tmp_path):
    """Whether it comes after the other command listens or before."""
    run = processes.Processes({})
    try:
        ready, forever = tmp_path / "ready", "while :; do sleep 0.05; done"
        waits = f"{listens}: >{ready}; {forever}"
        until = f"while [ ! -e {ready} ]; do sleep 0.05; done"
        sends = f"trap 'exit 75' TERM; {until}; kill -TERM {os.getpid()}; {forever}"
        commands = [["sh", "-c", text] for text in (waits, sends)]
        assert run.finish(commands) == 75
        assert run.listener.received == signal.SIGTERM
    finally:
        run.listener.close()


def test_a_signal_to_the_target_ends_it():
    script = f"trap 'exit 75' TERM; kill -TERM {os.getpid()}; while :; do sleep 0.05; done"
    assert Scripted(scripts=(script,)).submit(job("", restarts=9)) == 75


def test_processes_are_in_sessions_of_their_own(capfd):
    """So that Ctrl-C reaches them once."""
    python = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    assert subprocess.check_output(python).strip() == b"False"
    run = processes.Processes({})
    assert run.finish([python]) == 0
    run.listener.close()
    assert capfd.readouterr().out == "True\n"
