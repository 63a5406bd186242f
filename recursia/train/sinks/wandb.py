"""A run of Weights & Biases: needs wandb, of the extra `wandb`.

The library's own variables say where it goes: WANDB_PROJECT ("recursia" without it), WANDB_ENTITY,
WANDB_MODE=offline.
"""

import os
import pathlib
import tempfile
import uuid
from typing import Any

from recursia import buckets, config, settings
from recursia.train.sinks.sink import Row, Sink, curves

FILE = "wandb.id"


class WeightsAndBiases(Sink):
    """Logs rows and samples; a run that resumes goes on where it was."""

    def __init__(self, workdir: pathlib.Path, start: int, run: settings.Run):
        """Begins a run, or goes on with that of the directory."""
        import wandb

        self._library: Any = wandb
        near = tempfile.mkdtemp() if buckets.is_place(workdir) else str(workdir)
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", "recursia"),
            name=workdir.name,
            id=_identity(workdir),
            resume="allow",
            dir=near,
            config=config.to_dict(run),
            settings=self._library.Settings(console="off", silent=True, disable_git=True),
        )
        # Steps are a column of their own: after a resume the library takes no smaller ones.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        """Logs a row."""
        self._run.log(curves(row))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Logs a table of one text."""
        table = self._library.Table(columns=["step", "prompt", "text"], data=[[step, prompt, text]])
        self._run.log({"step": step, "samples": table})

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()


def _identity(workdir: pathlib.Path) -> str:
    """Returns the name under which the directory's run is known there."""
    path = workdir / FILE
    if path.exists() and (known := path.read_text().strip()):
        return known
    new = uuid.uuid4().hex
    path.write_text(new + "\n")
    return new
