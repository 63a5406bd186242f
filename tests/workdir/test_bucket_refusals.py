"""What is wrong with a bucket is one line that says what to do."""

import socket

import pytest

from recursia import objects, storage
from tests.helpers import runs
from tests.helpers.buckets import environment

LS = ("ckpt", "ls")


@pytest.fixture
def closed(monkeypatch):
    """Leads to a port where nothing listens, with little time for each request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for scheme in ("gs", "s3"):
        for name, value in environment(scheme, f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
    for name, value in {"SECONDS": 2.0, "REQUEST_SECONDS": 1.0}.items():
        monkeypatch.setattr(storage, name, value)
    yield from fresh()


def fresh():
    """Has file systems opened anew, for a test and after it."""
    objects.filesystem.cache_clear()
    yield
    objects.filesystem.cache_clear()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_does_not_answer_ends_in_a_line(closed, scheme, refused_command):
    place = f"{scheme}://tests/nothing"
    refused_command(*LS, f"--workdir={place}", parts=(place,), code=6)


def test_a_missing_package_is_named_with_what_installs_it(refused_command, monkeypatch):
    import fsspec

    def missing(name, **_):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    for _ in fresh():
        how = ("gcsfs", "pip install 'recursia[bucket]'")
        refused_command(*LS, "--workdir=gs://tests/run", parts=how)


def test_a_bucket_that_is_not_there_is_said_to_be_missing(emulator, tmp_path, refused_command):
    runs.write_text(tmp_path)
    config = runs.write_config(tmp_path / "tiny.py", runs.values(tmp_path))
    where = f"--workdir={emulator}://no-such-bucket/run"
    refused_command("train", f"--config={config}", where, parts=(where, "no such bucket"), code=6)


def test_missing_credentials_are_named(emulator, refused_command, monkeypatch):
    error = PermissionError("Access Denied")
    why = objects.reason(emulator, error)
    assert why.startswith("Access Denied; set ")
    assert objects.reason(emulator, TimeoutError()) == "no answer within 60 s"


@pytest.mark.parametrize("place", ["gs://", "gs://b", "s3://b/", "s3://b//c", "gs://b/../c"])
def test_a_place_must_be_a_folder_of_a_bucket(place, refused_command):
    refused_command(*LS, f"--workdir={place}", parts=(place, "://BUCKET/FOLDER"))
    said = refused_command("data", "inspect", place, parts=(place, "://BUCKET/FOLDER"))
    assert "damaged" not in said


def test_what_is_written_for_this_machine_is_refused_a_bucket(refused_command):
    typed = ("convert", "export", "--workdir=gs://b/run", "--output=gs://b/export")
    refused_command(*typed, parts=("--output", "gs://b/export", "this machine"))


def test_a_bucket_without_a_run_is_refused(bucket, refused_command):
    for verb in (LS, ("replay", "--step=1"), ("eval",)):
        code = 5 if verb is LS else 2
        refused_command(*verb, f"--workdir={bucket}", parts=(bucket,), code=code)
    refused_command("budget", f"--config={bucket}", parts=(bucket, "config.json"))


@pytest.mark.parametrize("place", ["s3:/models/tiny", "gs:models", "gs:/models", "s3//b/tiny"])
def test_a_bucket_that_lacks_a_slash_is_no_folder_here(refused_command, place):
    given = "train", "--config=mor:tiny", f"--workdir={place}"
    refused_command(*given, parts=[place, "gs://BUCKET/FOLDER"])
