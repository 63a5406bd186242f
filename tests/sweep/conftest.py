"""A sweep of three trials without a model."""

import pytest

from tests.helpers import trials


@pytest.fixture
def sweep(tmp_path, monkeypatch, command):
    """Runs a verb of sweeps on three trials without a model; returns what it said."""
    config = trials.write(tmp_path, trials.THREE)

    def run(*arguments, code=0, num_steps=3, **behaviour):
        trials.without_model(tmp_path, monkeypatch, num_steps, **behaviour)
        verb = arguments if arguments[:1] and arguments[0][:1] != "-" else ()
        config_option = () if verb else (f"--config={config}",)
        workdir = f"--workdir={tmp_path / 's'}"
        return command("sweep", *arguments, *config_option, workdir, code=code)

    return run
