"""Configuration files that declare sweeps, and trials that need no model."""

import json
import os
import pathlib
import sys

from recursia import config, jsonlines
from recursia.sweep import directory, local, processes, states
from tests.helpers import trainer_without_model
from tests.helpers.runs import FILE, values, write_text

RATES = """
def sweep(add):
    for rate in {}:
        add(**{{"optimizer.learning_rate": rate}})
"""
THREE = RATES.format("(0.1, 0.01, 1)")


def write(folder: pathlib.Path, ending: str, **sections: dict) -> str:
    """Writes a tiny configuration and what follows it; returns what `--config` takes."""
    write_text(folder)
    path = folder / "tiny.py"
    path.write_text(FILE.format(json.dumps(values(folder, "fixed", **sections))) + ending)
    return str(path)


def without_model(folder: pathlib.Path, monkeypatch, num_steps: int = 3, **behaviour: str) -> None:
    """Lets trials be run by the stand-in.

    Args:
      folder: of the configuration.
      monkeypatch: of the test.
      num_steps: of every trial.
      **behaviour: by the learning rate, with `_` for the point.
    """
    run = config.load(str(folder / "tiny.py"), {"train.num_steps": str(num_steps)})
    (folder / "record.json").write_text(json.dumps(config.to_dict(run)))
    program = (sys.executable, trainer_without_model.__file__)
    monkeypatch.setattr(processes, "PROGRAM", program)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    root = pathlib.Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RECORD", str(folder / "record.json"))
    rates = {rate.replace("_", "."): what for rate, what in behaviour.items()}
    monkeypatch.setenv("BEHAVIOUR", json.dumps(rates))


def starts(place: pathlib.Path) -> dict[str, list[dict]]:
    """Returns how each trial was started, by its name."""
    folders = (place / "trials").iterdir() if (place / "trials").is_dir() else ()
    found = {folder.name: folder / "starts.jsonl" for folder in folders}
    return {name: list(jsonlines.values(p)) for name, p in found.items() if p.exists()}


def by_rate(place: pathlib.Path) -> dict[float, str]:
    """Returns the state of each trial by its learning rate."""
    found = directory.read(place)
    rate = lambda name: found.trial(name).overrides["optimizer.learning_rate"]
    return {rate(name): states.of(found.folder(name))[0] for name in found.trials}
