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
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from broken import Broken, Unexpected

from recursia.workdir import digests

Rng = np.random.Generator
DIVERGED, CHECKPOINT, STORAGE, DATA, STOPPED, TYPED = 4, 5, 6, 3, 75, 130
SLEEP_SECONDS = 0.3  # about two saves


def reach(run: Broken, rng: Rng) -> int:
    """Returns a step of the living process, at a random instant of it."""
    step = run.live(int(rng.integers(1, 2 * run.every + 2)))
    time.sleep(rng.uniform(0, SLEEP_SECONDS))
    return step


def kill(run: Broken, rng: Rng) -> str:
    """A process that is killed while it trains."""
    step = reach(run, rng)
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
    step, number = reach(run, rng), rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
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
    step, seconds = reach(run, rng), rng.uniform(0.2, 3)
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.process.send_signal(signal.SIGCONT)
    run.live()
    return f"{seconds:.1f} s at step {step}"


def second_run(run: Broken, rng: Rng) -> str:
    """A second run in the same directory, which is refused, while the first goes on."""
    step = reach(run, rng)
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
    step, words = reach(run, rng), rng.choice(["ls", "verify"])
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
    step = reach(run, rng)
    limit_files(run, int(rng.integers(0, 5000)))
    run.ends(STORAGE)
    return f"at step {step}"


def full_for_a_moment(run: Broken, rng: Rng) -> str:
    """A disk that is full for less than the steps between two saves."""
    far = lambda: run.made() % run.every == 1
    run.live()
    run.until(far)
    limit_files(run, 0)
    step = run.made()
    run.until(lambda: run.made() != step or run.said().count("cannot be written") > 0)
    limit_files(run, resource.RLIM_INFINITY)
    if not run.until(lambda: run.made() > step + run.every):
        run.ends(STORAGE)
        return f"until the save after step {step}"
    return f"at step {step}"


def lost_lock(run: Broken, rng: Rng) -> str:
    """A lock that is deleted under a run, which ends before its next save."""
    step = reach(run, rng)
    (run.workdir / "run.lock").unlink()
    run.ends(CHECKPOINT)
    return f"at step {step}"


def files_of(run: Broken) -> list[pathlib.Path]:
    """Returns the files of the last step of a run at rest."""
    run.rest()
    step = run.checkpoints / str(run.saved()[-1])
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path: pathlib.Path, rng: Rng) -> None:
    """Flips a bit of a file."""
    held = bytearray(path.read_bytes())
    held[int(rng.integers(len(held)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(held)


def flipped_bit(run: Broken, rng: Rng) -> str:
    """A bit of a file of the last step that flips."""
    path = files_of(run)[int(rng.integers(len(files_of(run))))]
    flip(path, rng)
    return went_on_before(run, path)


def went_on_before(run: Broken, path: pathlib.Path) -> str:
    """Starts a run whose last step is damaged: it must set the step aside."""
    step = next(name for name in path.parts[::-1] if name.isdecimal())
    run.live()
    if f"set aside as {step}.un" not in run.said():
        raise Unexpected(f"step {step} was not set aside, of which {path} was damaged")
    return str(path.relative_to(run.checkpoints))


def lost_file(run: Broken, rng: Rng) -> str:
    """A file of the last step that is truncated, emptied or gone."""
    files = [path for path in files_of(run) if path.stat().st_size]
    path = files[int(rng.integers(len(files)))]
    how = str(rng.choice(["truncated", "emptied", "gone"]))
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if how == "truncated" else 0)
    return f"{went_on_before(run, path)} {how}"


def lost_marker(run: Broken, rng: Rng) -> str:
    """The file that makes the last step count, lost."""
    path = files_of(run)[0].parents[0]
    path = run.checkpoints / str(run.saved()[-1]) / digests.COMMIT
    path.unlink()
    return went_on_before(run, path)


def lost_markers(run: Broken, rng: Rng) -> str:
    """Those of all steps: the run is refused until they are back."""
    run.rest()
    paths = [run.checkpoints / str(step) / digests.COMMIT for step in run.saved()]
    held = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    refused(run, CHECKPOINT, "holds no whole step")
    for path, marker in held.items():
        path.write_bytes(marker)
    return f"of {len(held)} steps"


def refused(run: Broken, code: int, part: str, *changed: str) -> None:
    """Starts a run that must be refused, in a line with some words."""
    before = run.made(), run.saved()
    run.start(*changed)
    run.ends(code)
    if part not in run.tail()[-1] or before != (run.made(), run.saved()):
        raise Unexpected(f"refused otherwise, or with losses: {run.tail()[-1]}")


def shards(run: Broken) -> list[pathlib.Path]:
    """Returns the files of the training tokens."""
    return sorted((run.workdir / "data").glob("train-*.tokens"))


def truncated_shard(run: Broken, rng: Rng) -> str:
    """A data shard that is cut short in mid-run, and repaired: no step is lost."""
    step, shard = reach(run, rng), shards(run)[0]
    held = shard.read_bytes()
    os.truncate(shard, int(rng.integers(len(held) // 2)))
    try:
        run.ends(DATA)
    finally:
        shard.write_bytes(held)
    if run.saved()[-1] != run.made():
        raise Unexpected(f"made step {run.made()}, and saved {run.saved()[-1]}")
    return f"at step {step}"


def changed_data(run: Broken, rng: Rng) -> str:
    """Bytes of a data shard that change while no process runs, or the shard gone; then repaired."""
    run.rest()
    shard, how = shards(run)[0], str(rng.choice(["changed", "gone"]))
    held = shard.read_bytes()
    flip(shard, rng) if how == "changed" else shard.unlink()
    try:
        refused(run, DATA, shard.name)
    finally:
        shard.write_bytes(held)
    return how


def spike(run: Broken, rng: Rng) -> str:
    """A learning rate of 30 in mid-run, in a copy of the directory: the run ends."""
    run.rest()
    copied = run.copy()
    policy = str(rng.choice(["stop", "roll_back"]))
    wild = ("--config.optimizer.learning_rate=30", "--config.schedule.kind=constant")
    wild = (*wild, f"--config.divergence.policy={policy}")
    process = run.spawn(*wild, workdir=copied)
    said, code = process.communicate()[0].decode(), process.wait()
    incidents = (copied / "incidents.jsonl").read_text().splitlines() if code == DIVERGED else []
    if code != DIVERGED or "Traceback" in said or not all(map(json.loads, incidents)):
        raise Unexpected(f"a learning rate of 30 ended with {code}: {said.splitlines()[-1:]}")
    shutil.rmtree(copied)
    return f"{policy}, {len(incidents)} incidents"


def changed_settings(run: Broken, rng: Rng) -> str:
    """Settings that change on resume: those that make another run of it are refused."""
    run.rest()
    other = str(rng.choice(["train.seed=1", "data.seed=1", "train.seq_len=16"]))
    refused(run, CHECKPOINT, "", f"--config.{other}")
    keep = int(rng.integers(4, 7))
    run.start(f"--config.checkpoint.keep={keep}")
    run.live()
    if f"changed: config.checkpoint.keep was 3, is {keep}" not in run.said():
        raise Unexpected("a changed setting was not said")
    run.stop()
    return f"{other} refused, checkpoint.keep={keep} taken"


def stale_lock(run: Broken, rng: Rng) -> str:
    """A lock of a process that is gone: of this machine or another's, or one that is no JSON."""
    run.rest()
    path, age = run.workdir / "run.lock", 0.0
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mine = {"host": socket.gethostname(), "process": 1, "machine": f"{socket.gethostname()} {boot}"}
    how = str(rng.choice(["mine", "another's, hours old", "another's, new", "torn"]))
    text = json.dumps(mine if how == "mine" else {**mine, "machine": "other", "host": "other"})
    age = 7200.0 if "hours" in how else 0.0
    path.write_text(text[: len(text) // 2] if how == "torn" else text)
    os.utime(path, (time.time() - age,) * 2)
    if how == "another's, new":
        os.utime(path, (time.time() - 40,) * 2)
    run.live()
    return how


def torn_rows(run: Broken, rng: Rng) -> str:
    """Last lines of the run's files that were cut short."""
    run.rest()
    names = ("metrics.jsonl", "samples.jsonl", "checkpoints.jsonl", "data_checked.json")
    name = str(rng.choice(names))
    with open(run.workdir / name, "ab") as file:
        file.write(b'{"step": 6, "lo')
    run.live()
    return name


def torn_program(run: Broken, rng: Rng) -> str:
    """A compiled program in the cache that was cut short."""
    run.rest()
    paths = sorted(pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"))
    path = max(paths, key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)
    run.live()
    path.unlink(missing_ok=True)
    return path.name[:40]


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
    "flipped bit in the last step": flipped_bit,
    "file of the last step truncated, emptied or gone": lost_file,
    "commit marker of the last step lost": lost_marker,
    "commit markers of all steps lost, put back": lost_markers,
    "data shard truncated in mid-run, repaired": truncated_shard,
    "data changed or gone, repaired": changed_data,
    "learning rate of 30": spike,
    "settings changed on resume": changed_settings,
    "last line cut short": torn_rows,
    "compiled program cut short": torn_program,
}
SURVIVED = ("SIGSTOP and SIGCONT", "a second run in the directory", "checkpoints read meanwhile")
SURVIVED = (*SURVIVED, "full disk for a moment")  # by the process itself
