"""Whatever ends a command from outside ends it in one line, and a run only once it is saved."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from recursia import console, signals
from recursia.train.stop import Stop

# What runs in place of a verb; it says "ready" once it is in the midst of something.
SCRIPT = """
import sys, time
from recursia import __main__, cli, signals
from recursia.train import stop

def verb(given):
{body}

cli.main = verb
sys.argv[1:] = {arguments}
sys.exit(__main__.main())
"""
BUSY = "print('ready', file=sys.stderr, flush=True)\ntime.sleep(60)"
# A finalizer and a callback of the garbage collector, which swallow what is raised in them.
FINALIZER = f"class Slow:\n def __del__(self):\n  {BUSY.replace(chr(10), '; ')}\nSlow()\n{BUSY}"
CALLBACK = f"""
import gc
def collecting(*_):
    gc.callbacks.clear()
    {BUSY.replace(chr(10), "; ")}
gc.callbacks.append(collecting)
gc.collect()
{BUSY}
"""
STEPS = """
told = stop.Stop(4, 7)
for step in (5, 6, 7):
    if step == 6:
        print('ready', file=sys.stderr, flush=True)
        time.sleep(1)
    if told.comes_after(step):
        print('saved', step, file=sys.stderr)
        told.close()
        return 75
return 0
"""
# The main thread is in C for good, as while it compiles.
DEAF = "import hashlib\nprint('ready', file=sys.stderr, flush=True)\n"
DEAF += "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


def as_by_default():
    """Resets, in a child, signals that this process was started to ignore."""
    for number in signals.ENDINGS:
        signal.signal(number, signal.SIG_DFL)


def start(body, arguments=("train",), **how):
    body = textwrap.indent(body.strip(), "    ")
    script = SCRIPT.format(body=body, arguments=list(arguments))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how = {**pipes, "preexec_fn": as_by_default, **how}
    return subprocess.Popen([sys.executable, "-c", script], **how)


def ended(process, *numbers, seconds=0.2):
    """Sends signals once the process is ready; returns its code and what it said after that."""
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)  # until that line is done with
    for number in numbers:
        process.send_signal(number)
        time.sleep(seconds)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said.splitlines()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "recursia: interrupted"),
        (signal.SIGTERM, 75, "recursia: stopped by a signal; there was nothing to save;"),
        (signal.SIGUSR1, 75, "recursia: stopped by a signal"),
        (signal.SIGHUP, 75, "recursia: stopped by a signal"),
    ],
)
def test_a_run_with_nothing_to_save_ends_at_once_in_one_line(number, code, said):
    got, lines = ended(start(BUSY), number)
    assert (got, len(lines)) == (code, 1) and lines[0].startswith(said)


@pytest.mark.parametrize("body", [FINALIZER, CALLBACK], ids=["finalizer", "collector"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_that_something_swallows_ends_a_run_all_the_same(body, number, code):
    got, lines = ended(start(body), number)
    assert (got, len(lines)) == (code, 1) and lines[0].startswith("recursia: ")


@pytest.mark.parametrize("arguments", [("eval",), ("data", "prepare")])
def test_any_verb_is_interrupted_in_one_line(arguments):
    got, lines = ended(start(BUSY, arguments), signal.SIGINT)
    assert (got, lines) == (130, ["recursia: interrupted"])


def test_a_command_that_does_not_come_back_to_python_is_interrupted_all_the_same():
    got, lines = ended(start(DEAF, ("compile",)), signal.SIGINT)
    assert (got, lines) == (130, ["recursia: interrupted"])


def test_a_command_is_interrupted_while_it_imports(tmp_path):
    slow = "import sys, time\nprint('ready', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "argcomplete.py").write_text(slow)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "_ARGCOMPLETE": "1"}
    command = [sys.executable, "-m", "recursia", "budget"]
    how = {"text": True, "env": env, "preexec_fn": as_by_default}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **how)
    assert ended(process, signal.SIGINT) == (130, ["recursia: interrupted"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("module", ["jax", "threading"])
def test_a_run_that_is_told_to_stop_while_it_imports_is_started_again(tmp_path, number, module):
    slow = "import sys, time\nprint('ready', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(slow)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "recursia", "train", "--config=mor:tiny", "--workdir=w"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path, preexec_fn=as_by_default
    )
    got, lines = ended(process, number)
    assert (got, len(lines)) == (75, 1) and lines[0].startswith("recursia: stopped by a signal")


def test_a_run_saves_the_step_under_way_and_says_so():
    got, lines = ended(start(STEPS), signal.SIGINT)
    assert (got, lines) == (75, ["saving step 6; press Ctrl-C again to leave at once", "saved 6"])
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert ended(start(STEPS), number, signal.SIGTERM) == (75, ["saving step 6", "saved 6"])


def test_a_second_interrupt_leaves_at_once():
    got, lines = ended(start(STEPS), signal.SIGINT, signal.SIGINT)
    assert (got, lines[1:]) == (130, ["recursia: interrupted"])


def test_a_signal_that_was_ignored_stays_so():
    process = start(STEPS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert ended(process, signal.SIGHUP) == (0, [])


def test_a_lost_terminal_ends_no_run(tmp_path):
    said = tmp_path / "said"
    pid, master = pty.fork()
    if not pid:  # the leader of a session whose terminal is `master`
        process = start(STEPS, stdout=None, stderr=None, stdin=None)
        (tmp_path / "pid").write_text(str(process.pid))
        signal.signal(signal.SIGHUP, lambda *_: process.send_signal(signal.SIGHUP))
        while process.poll() is None:
            time.sleep(0.05)
        said.write_text(str(process.returncode))
        os._exit(0)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    os.waitpid(pid, 0)
    assert said.read_text() == "0"


def test_the_signals_are_given_back():
    before = [signal.getsignal(number) for number in signals.ENDINGS]
    stop = Stop(0, 9)
    assert not stop.comes_after(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.comes_after(2)
    stop.close()
    assert [signal.getsignal(number) for number in signals.ENDINGS] == before


def test_a_signal_is_not_lost_when_a_run_goes_back():
    outer = signals.Listener(signals.ENDINGS)
    before, after = Stop(0, 9), None
    try:
        assert not before.comes_after(1)
        os.kill(os.getpid(), signal.SIGTERM)
        before.close()
        after = Stop(0, 9)  # as the run goes on from its last checkpoint
        assert after.comes_after(1)
    finally:
        for each in (after, outer):
            if each is not None:
                each.close()


def test_a_reader_that_left_is_no_error_to_who_speaks(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("nobody hears this")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
