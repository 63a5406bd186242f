"""A run whose prepared data in a bucket cannot be read any more saves, and goes on later."""

import os

import pytest

from recursia import buckets, cli, storage
from recursia.data import remote
from recursia.data.loader import Loader
from tests.helpers import faulty, runs
from tests.helpers.corpora import prepare
from tests.helpers.refusals import assert_one_line

STEPS, FAILS_AT = 9, 6
SECTIONS = {
    "train": {"num_steps": STEPS, "batch_size": 8},
    "checkpoint": {"every_steps": 0},
    "eval": {"every_steps": 0},
    "log": {"sinks": []},
}


@pytest.fixture
def data(bucket, tmp_path):
    """The same prepared data on disk and in the bucket."""
    runs.write_text(tmp_path)
    prepare([str(tmp_path / "train.txt")], tmp_path / "data", shard_tokens=500)
    for file in (tmp_path / "data").iterdir():
        buckets.path(f"{bucket}/data/{file.name}").write_bytes(file.read_bytes())
    return tmp_path / "data", f"{bucket}/data"


@pytest.fixture
def faults(data, emulator, monkeypatch):
    """What requests of tensorstore meet between here and the emulated bucket."""
    variable = {"gs": "TENSORSTORE_GCS_HTTP_URL", "s3": "AWS_ENDPOINT_URL_S3"}[emulator]
    there = os.environ["TENSORSTORE_GCS_HTTP_URL" if emulator == "gs" else "AWS_ENDPOINT_URL"]
    with faulty.before(there) as (url, faults):
        monkeypatch.setenv(variable, url)
        yield faults


@pytest.mark.slow
def test_data_that_cannot_be_read_any_more_cost_no_step(data, faults, tmp_path, monkeypatch, capfd):
    here, there = data

    def train(name, path):
        values = {**runs.values(tmp_path, "fixed", **SECTIONS), "data": {"path": [str(path)]}}
        config = runs.write_config(tmp_path / f"{name}.py", values)
        return cli.main(["train", f"--config={config}", f"--workdir={tmp_path / name}"])

    assert train("unbroken", here) == 0
    monkeypatch.setattr(remote.Cache, "put", lambda *_: None)  # so that every row is asked for
    with monkeypatch.context() as patch:
        patch.setattr(storage, "SECONDS", 2.0)

        def batch(self, number, real=Loader.batch):
            if number >= FAILS_AT:
                faults.always = "refuse"
            return real(self, number)

        patch.setattr(Loader, "batch", batch)
        capfd.readouterr()
        assert train("broken", there) == 3
    said = capfd.readouterr().err
    assert faults.asked > 10 and "Traceback" not in said
    (saved,) = runs.saved(tmp_path / "broken")
    assert saved in (FAILS_AT - 1, FAILS_AT)
    last = said.splitlines(keepends=True)[-1]
    resumes = f"saved step {saved}, from which the same command resumes"
    assert_one_line(last, f"{there}/train-0", "cannot be read", "no answer within 2", resumes)
    faults.always = None
    assert train("broken", there) == 0
    ours, theirs = (runs.state_of(tmp_path / name, STEPS) for name in ("broken", "unbroken"))
    assert runs.is_equal(ours, theirs)
    assert runs.rows(tmp_path / "broken") == runs.rows(tmp_path / "unbroken")
