"""A run's directory in a bucket does what one on disk does."""

import os
import signal
import subprocess
import sys
import time
import urllib.parse

import pytest

from recursia import buckets
from recursia.workdir import digests
from tests.helpers import cluster, exhaustive, runs
from tests.helpers.buckets import Faults, brought

SECTIONS = {
    "checkpoint": {"every_steps": 3, "keep": 2},
    "eval": {"every_steps": 5, "prompts": ["red"], "sample_tokens": 4},
    "train": {"num_steps": 10},
}
# A process whose requests have little time.
IMPATIENT = """
import sys
from recursia import storage
storage.SECONDS, storage.REQUEST_SECONDS, storage.TRIES = 9.0, 3.0, 1
from recursia.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    os.environ["XDG_CACHE_HOME"], before = str(folder / "cache"), os.environ.get("XDG_CACHE_HOME")
    runs.write_text(folder)
    runs.write_config(folder / "tiny.py", runs.values(folder, **SECTIONS))
    yield folder
    os.environ.pop("XDG_CACHE_HOME")
    os.environ |= {"XDG_CACHE_HOME": before} if before else {}


@pytest.fixture(scope="module")
def unbroken(folder):
    """The directory on disk of a run that nothing stopped."""
    assert runs.train(folder, folder / "unbroken") == 0
    return folder / "unbroken"


def start(folder, place, program=("-m", "recursia"), **environment):
    """Starts a run in another process."""
    return subprocess.Popen(
        [sys.executable, *program, *runs.command(folder, place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def spoken(process, seconds=400):
    """Returns what a process says until it ends, in time."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def assert_equal(place, unbroken, tmp_path):
    """Asserts that a run in a bucket is that on disk, to the bit."""
    ours = brought(place, tmp_path / "brought")
    assert runs.saved(ours) == runs.saved(unbroken) == [9, 10]
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert runs.rows(ours, name) == runs.rows(unbroken, name)
    assert runs.is_equal(runs.state_of(ours, 10), runs.state_of(unbroken, 10))
    assert all(digests.check(ours / "checkpoints" / str(step)) for step in (9, 10))
    assert any((ours / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("emulator", ["gs", exhaustive("s3")], indirect=True)
def test_a_run_killed_in_a_bucket_resumes_to_the_bit(folder, bucket, unbroken, tmp_path, command):
    """With its prepared data there too, where those of the unbroken run are on disk."""
    texts = (f"--input={folder}/train.txt", f"--validation={folder}/validation.txt")
    data, bucket = f"{bucket}/data", f"{bucket}/run"
    prepared = (*texts, "--tokenizer=byte", f"--output={data}", f"--partial={tmp_path}/partial")
    command("data", "prepare", *prepared)
    there = {**runs.values(folder, **SECTIONS), "data": {"path": [data]}}
    folder = tmp_path
    runs.write_config(folder / "tiny.py", there)
    place = buckets.path(bucket)
    with start(folder, bucket) as process:
        while not (place / "checkpoints" / "3" / digests.COMMIT).exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert runs.train(folder, place) == 0
    assert_equal(place, unbroken, tmp_path)
    where = f"--workdir={bucket}"
    out, _ = command("ckpt", "verify", where)
    assert out.count("match their digests") == 2
    assert "nothing is at fault" in command("replay", where, "--step=8")[0]
    assert command("eval", where, "--num_batches=1", "--depths=2")[0]
    drawn = ("--prompt=red", "--num_tokens=4", "--json")
    ours, theirs = (command("generate", f"--workdir={w}", *drawn)[0] for w in (bucket, unbroken))
    assert ours == theirs
    made = ("convert", "recursive", where, f"--config={bucket}", f"--output={bucket}/made")
    command(*made)
    assert "match their digests" in command("ckpt", "ls", f"--workdir={bucket}/made")[0]
    assert command("convert", "export", where, f"--output={tmp_path / 'export'}")


@pytest.mark.slow
@pytest.mark.parametrize("emulator", ["gs", exhaustive("s3")], indirect=True)
def test_two_processes_in_a_bucket_equal_two_on_disk(folder, bucket, tmp_path):
    runs.write_config(tmp_path / "fixed.py", runs.values(folder, "fixed", **cluster.SECTIONS))
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for where in (bucket, tmp_path / "disk"):
        cluster.run(tmp_path / "output", cluster.train(tmp_path, where), count=2)
    ours, theirs = brought(buckets.path(bucket), tmp_path / "brought"), tmp_path / "disk"
    assert runs.rows(ours) == runs.rows(theirs)
    assert runs.is_equal(runs.state_of(ours, 4), runs.state_of(theirs, 4))


WAYS = [
    ("gs", "hang"),
    exhaustive("s3", "refuse"),
    exhaustive("gs", "refuse"),
    exhaustive("s3", "hang"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("emulator", "fault"), WAYS, indirect=["emulator"])
def test_a_save_that_cannot_be_written_ends_the_run_with_the_step_before_kept(
    folder, emulator, bucket, unbroken, tmp_path, fault
):
    with Faults(emulator) as faults:
        is_of_6 = lambda path: "/6/" in urllib.parse.unquote(path)
        faults.spare = lambda method, path: method == "GET" or not is_of_6(path)
        faults.kind = fault
        with start(folder, bucket, ("-c", IMPATIENT), **faults.environment) as process:
            said = spoken(process)
        assert process.returncode == 6, said
    last = said.strip().split("\n")[-1]
    assert last.startswith("recursia: ") and "/6: cannot be saved (" in last
    assert last.endswith("the last whole step is 3")
    assert "Traceback" not in said
    assert runs.train(folder, bucket) == 0
    assert_equal(buckets.path(bucket), unbroken, tmp_path)


@pytest.mark.slow
def test_requests_that_fail_at_times_are_tried_again(folder, emulator, bucket, unbroken, tmp_path):
    with Faults(emulator) as faults:
        faults.spare = lambda method, path: faults.count % 80 != 3
        faults.kind = "refuse"
        with start(folder, bucket, **faults.environment) as process:
            said = spoken(process)
        assert process.returncode == 0 and faults.met > 2, said
    assert_equal(buckets.path(bucket), unbroken, tmp_path)
