"""Runs that are trained once and read by the tests of several files."""

import dataclasses

import pytest

from recursia.train import loop, opening
from tests.helpers import runs, trainers


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The text and the configuration of a tiny run."""
    folder = tmp_path_factory.mktemp("train")
    runs.write_text(folder)
    runs.write_config(folder / "tiny.py", runs.values(folder, **runs.SECTIONS))
    return folder


@pytest.fixture(scope="package")
def unbroken(folder):
    """The directory of a run that nothing stopped."""
    assert runs.train(folder, folder / "unbroken") == 0
    return folder / "unbroken"


@pytest.fixture(scope="package")
def earlier(folder):
    """The directory of a finished run of a fixed depth."""
    loop.train(trainers.short_run(folder), folder / "earlier", {})
    return folder / "earlier"


@pytest.fixture
def compiled_once(monkeypatch):
    """The trainers of a test: equal runs share one, and what it has compiled."""
    real, made = opening.trainer_of, {}

    def trainer(run, model, mesh, teacher):
        key = dataclasses.replace(run, data=None), model, mesh
        return made[key] if key in made else made.setdefault(key, real(run, model, mesh, teacher))

    monkeypatch.setattr(opening, "trainer_of", trainer)
    return made
