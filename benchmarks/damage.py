"""Damage to the files of a run: steps, data, rows, programs; and settings that change.

The functions are as those of `faults.py`.
"""

import json
import os
import pathlib
import shutil

from broken import CHECKPOINT, DATA, DIVERGED, Broken, Rng, Unexpected

from recursia.workdir import digests


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
    files = files_of(run)
    path = files[int(rng.integers(len(files)))]
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
    run.rest()
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
    step, shard = run.reach(rng), shards(run)[0]
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
