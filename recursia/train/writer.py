"""What a run writes beside its checkpoints: rows, samples and incidents, and what gets them too.

A full disk delays these files and ends nothing: rows wait in memory until they can be written.
"""

import math
import pathlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from recursia import console, jsonlines
from recursia.errors import StorageError
from recursia.train.sinks.json_lines import METRICS, SAMPLES, JsonLines, keep, read
from recursia.train.sinks.sink import Row, Sink
from recursia.workdir import place

INCIDENTS = "incidents.jsonl"


class Writer:
    """Passes rows and samples on to sinks, of which JSON Lines is always one."""

    def __init__(self, workdir: pathlib.Path, start: int, sinks: Sequence[Sink] = ()):
        """Opens the files.

        Args:
          workdir: the run's directory.
          start: the step that the run resumes from; rows of later steps are deleted.
          sinks: that get the same. One that raises an error gets nothing more, with one line.

        Raises:
          StorageError: if the files cannot be opened.
        """
        here = place.of(workdir)
        self._files, self._sinks = JsonLines(workdir, start), list(sinks)
        try:
            self._incidents = here.lines(workdir / INCIDENTS)
        except OSError as error:
            raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None
        self._closed = threading.Event()
        if here.INTERVAL is not None:
            how = {"target": self._flush_often, "args": (here.INTERVAL,), "daemon": True}
            threading.Thread(name="rows", **how).start()

    def write(self, row: Row) -> None:
        """Writes one row; an array becomes a list."""
        plain = {name: np.asarray(value).tolist() for name, value in row.items()}
        self._files.write(plain)
        self._others(lambda sink: sink.write(plain))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes one sample."""
        self._files.sample(step, prompt, text)
        self._others(lambda sink: sink.sample(step, prompt, text))

    def incident(self, row: Row) -> None:
        """Writes a row of incidents.jsonl; a number that is not finite becomes its name."""
        shown = lambda x: str(x) if isinstance(x, float) and not math.isfinite(x) else x
        self._incidents.write(jsonlines.line({name: shown(x) for name, x in row.items()}))
        self.flush()

    def flush(self) -> None:
        """Writes what waits for it, in a bucket."""
        self._files.flush()
        self._incidents.flush()
        self._others(lambda sink: sink.flush())

    def _flush_often(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self.flush()

    def close(self) -> None:
        """Closes the files and the sinks."""
        self._closed.set()
        self._files.close()
        self._incidents.close()
        self._others(lambda sink: sink.close())

    def _others(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())
                console.say(f"{type(sink).__name__}: {what}; {METRICS} has what it lacks")
                self._sinks.remove(sink)


def scored(workdir: pathlib.Path, step: int, has_scores: bool, num_samples: int) -> bool:
    """Returns whether the validation of a step was written, to its end.

    Args:
      workdir: the run's directory.
      step: of the validation.
      has_scores: whether the run has a validation split.
      num_samples: texts that it samples.
    """
    of_step = lambda name: [row for row in read(workdir / name) if row["step"] == step]
    has_row = any("validation_loss" in row for row in of_step(METRICS))
    return (has_row or not has_scores) and len(of_step(SAMPLES)) >= num_samples


def forget(workdir: pathlib.Path, step: int) -> None:
    """Deletes what was written of the validation of a step; raises StorageError if it cannot."""
    try:
        is_other = lambda row: row["step"] != step
        keep(workdir / METRICS, lambda row: is_other(row) or "validation_loss" not in row)
        keep(workdir / SAMPLES, is_other)
    except OSError as error:
        raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None
