"""Faults of every kind that a run is promised to survive, injected into a run of `broken.py`.

Each function takes the run and a random generator, breaks the run, and checks what comes of it. It
returns what was drawn. What the next start makes of it, and how many steps it has to make again, is
checked when it starts; that all of it changed no bit, at the end.
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import damage
from broken import CHECKPOINT, SLEEP_SECONDS, STOPPED, STORAGE, Broken, Rng, Unexpected

from recursia.workdir import digests


def kill(run: Broken, rng: Rng) -> str:
    """A process that is killed while it trains."""
    step = run.reach(rng)
    run.stop()
    return f"about step {step}"


def kill_in_a_save(run: Broken, rng: Rng) -> str:
    """A process that is killed while a step's files are written."""
    run.live(int(rng.integers(1, run.every)))
    saves = lambda: [
        path
        for path in run.checkpoints.iterdir()
        if path.name.isdecimal() and not (path / digests.COMMIT).exists()
    ]
    run.until(lambda: bool(saves()))
    time.sleep(rng.uniform(0, SLEEP_SECONDS / 4))
    found = [path.name for path in saves()]
    run.stop()
    return f"steps unfinished: {found}"


def kill_in_a_start(run: Broken, rng: Rng) -> str:
    """A process that is killed before its first step."""
    run.stop()
    run.start()
    seconds = rng.uniform(0.05, 6)
    time.sleep(seconds)
    run.stop()
    return f"after {seconds:.2f} s"


def stop(run: Broken, rng: Rng) -> str:
    """A run that is told to stop by a signal, once or often: it saves, and loses no step."""
    step, number = run.reach(rng), rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    times = 1 if number == signal.SIGINT else int(rng.integers(1, 5))
    for _ in range(times):
        run.process.send_signal(int(number))
        time.sleep(0.01)
    run.ends(STOPPED)
    if run.saved()[-1] != run.made():
        raise Unexpected(f"made step {run.made()}, and saved {run.saved()[-1]}")
    return f"signal {number} {times} times at step {step}"


def stop_in_a_start(run: Broken, rng: Rng) -> str:
    """A run that is told to stop before its first step."""
    run.stop()
    run.start()
    seconds = rng.uniform(0.5, 4)
    time.sleep(seconds)
    run.process.send_signal(signal.SIGTERM)
    # While Python itself starts, nothing listens yet.
    run.ends(STOPPED, *[-signal.SIGTERM] * (seconds < 1))
    return f"after {seconds:.2f} s"


def pause(run: Broken, rng: Rng) -> str:
    """A process that stands still and goes on."""
    step, seconds = run.reach(rng), rng.uniform(0.2, 3)
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.process.send_signal(signal.SIGCONT)
    run.live()
    return f"{seconds:.1f} s at step {step}"


def second_run(run: Broken, rng: Rng) -> str:
    """A second run in the same directory, which is refused, while the first goes on."""
    step = run.reach(rng)
    second = run.spawn()
    said = second.communicate()[0].decode().splitlines()[-1:]
    if run.process.poll() == 0:
        return f"too late, at step {step}"
    if (code := second.returncode) != CHECKPOINT or "trains there" not in "".join(said):
        raise Unexpected(f"the second run ended with {code}: {said}")
    run.live()
    return f"at step {step}"


def read(run: Broken, rng: Rng) -> str:
    """Checkpoints that are listed and verified while steps are saved and given up."""
    step, words = run.reach(rng), rng.choice(["ls", "verify"])
    command = [sys.executable, "-m", "recursia", "ckpt", words, f"--workdir={run.workdir}"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or "Traceback" in done.stderr:
        raise Unexpected(f"ckpt {words} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return f"{words} at step {step}"


def limit_files(run: Broken, size: int) -> None:
    """Lets the process write no file beyond a size, as a full disk does."""
    with contextlib.suppress(ProcessLookupError):  # its code will say why it ended
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_disk(run: Broken, rng: Rng) -> str:
    """A disk that is full until the next save, which ends the run; metrics do not."""
    step = run.reach(rng)
    limit_files(run, int(rng.integers(0, 5000)))
    run.ends(STORAGE)
    return f"at step {step}"


def full_for_a_moment(run: Broken, rng: Rng) -> str:
    """A disk that is full for less than the steps between two saves."""
    run.live()
    over = lambda made: made % run.every and run.saved()[-1:] == [made - made % run.every]
    run.until(lambda: over(run.made()))  # the last save
    limit_files(run, 0)
    step = run.made()
    run.until(lambda: run.made() != step or run.said().count("cannot be written") > 0)
    limit_files(run, resource.RLIM_INFINITY)
    if not run.until(lambda: run.made() > min(step + run.every, run.steps - 1)):
        run.ends(STORAGE)
        return f"until the save after step {step}"
    return f"at step {step}"


def lost_lock(run: Broken, rng: Rng) -> str:
    """A lock that is deleted under a run, which ends before its next save."""
    step = run.reach(rng)
    (run.workdir / "run.lock").unlink()
    run.ends(CHECKPOINT)
    return f"at step {step}"


def stale_lock(run: Broken, rng: Rng) -> str:
    """A lock of a process that is gone: of this machine or another's, or one that is no JSON."""
    run.rest()
    path = run.workdir / "run.lock"
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mine = {"host": socket.gethostname(), "process": 1, "machine": f"{socket.gethostname()} {boot}"}
    how = str(rng.choice(["mine", "another's, hours old", "another's, new", "torn"]))
    text = json.dumps(mine if how == "mine" else {**mine, "machine": "other", "host": "other"})
    path.write_text(text[: len(text) // 2] if how == "torn" else text)
    touched = time.time() - (40.0 if "new" in how else 7200.0)
    os.utime(path, (touched, touched))
    run.live()
    return how


KINDS: dict[str, Callable[[Broken, Rng], str]] = {
    "SIGKILL": kill,
    "SIGKILL in a save": kill_in_a_save,
    "SIGKILL before the first step": kill_in_a_start,
    "SIGTERM, SIGUSR1, Ctrl-C": stop,
    "SIGTERM before the first step": stop_in_a_start,
    "SIGSTOP and SIGCONT": pause,
    "a second run in the directory": second_run,
    "checkpoints read meanwhile": read,
    "full disk": full_disk,
    "full disk for a moment": full_for_a_moment,
    "lock deleted in mid-run": lost_lock,
    "stale lock": stale_lock,
    "flipped bit in the last step": damage.flipped_bit,
    "file of the last step truncated, emptied or gone": damage.lost_file,
    "commit marker of the last step lost": damage.lost_marker,
    "commit markers of all steps lost, put back": damage.lost_markers,
    "data shard truncated in mid-run, repaired": damage.truncated_shard,
    "data changed or gone, repaired": damage.changed_data,
    "learning rate of 30": damage.spike,
    "settings changed on resume": damage.changed_settings,
    "last line cut short": damage.torn_rows,
    "compiled program cut short": damage.torn_program,
}
SURVIVED = ("SIGSTOP and SIGCONT", "a second run in the directory", "checkpoints read meanwhile")
SURVIVED = (*SURVIVED, "full disk for a moment")  # by the process itself
