"""What a run writes beside its checkpoints: rows, samples, incidents and TensorBoard's curves.

A full disk delays these files and ends nothing: rows wait in memory until they can be written.
"""

import contextlib
import math
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from recursia import console, jsonlines
from recursia.errors import StorageError
from recursia.workdir import place

METRICS, SAMPLES, INCIDENTS = "metrics.jsonl", "samples.jsonl", "incidents.jsonl"
Row = dict[str, Any]


class Board:
    """TensorBoard's file of a run, written by the caller.

    The library's own writer has a thread, and a queue on which the caller waits for ever once the
    thread has met a full disk.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """Opens a file.

        Args:
          folder: of the files of all starts of the run.
          start: step from which the run goes on; TensorBoard hides what others say of later ones.
        """
        self._folder, self._start, self._file, self._is_late = folder, start, None, False
        self._mirror = place.of(folder).mirror(folder)

    def write(self, values: dict[str, float], step: int) -> None:
        """Writes values by their names; those that cannot be written are lost, with one line."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        events: Any = event_pb2  # its classes are made at run time
        try:
            file = self._opened()
            for name, value in values.items():
                summary = scalar(name, value)
                event = events.Event(wall_time=time.time(), step=step, summary=summary)
                file.write_event(event)
            file.flush()
            self._is_late = False
        except OSError as error:
            self._say(error)
            self._shut()

    def _opened(self) -> Any:
        if self._file is None:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

            events: Any = event_pb2
            near = self._mirror.near
            near.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(near / "events"), f".{time.time_ns()}")
            log = events.SessionLog(status=events.SessionLog.START)
            self._file.write_event(events.Event(step=self._start + 1, session_log=log))
        return self._file

    def flush(self) -> None:
        """Writes to the bucket, if the folder is in one; a large file is followed by another."""
        try:
            if self._mirror.send():
                self._shut()
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._is_late:
            console.say(
                f"{self._folder}: cannot be written ({error.strerror}); {METRICS} will have "
                "what TensorBoard lacks"
            )
        self._is_late = True

    def close(self) -> None:
        """Closes the file."""
        self._shut()
        self.flush()

    def _shut(self) -> None:
        """Closes the file; the next row opens another."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class Writer:
    """Appends rows to metrics.jsonl and TensorBoard; on a resumed run, after the restored step."""

    def __init__(self, workdir: pathlib.Path, start: int, tensorboard: bool):
        """Opens the files.

        Args:
          workdir: the run's directory.
          start: the step that the run resumes from; rows of later steps are deleted.
          tensorboard: whether TensorBoard files are written too.

        Raises:
          StorageError: if the files cannot be opened.
        """
        paths = [workdir / name for name in (METRICS, SAMPLES, INCIDENTS)]
        here = place.of(workdir)
        try:
            for path in paths[:2]:
                _keep(path, lambda row: row["step"] <= start)
            self._rows, self._samples, self._incidents = map(here.lines, paths)
        except OSError as error:
            raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None
        self._board = Board(workdir / "tensorboard", start) if tensorboard else None
        self._closed = threading.Event()
        if here.INTERVAL is not None:
            how = {"target": self._flush_often, "args": (here.INTERVAL,), "daemon": True}
            threading.Thread(name="rows", **how).start()

    def write(self, row: Row) -> None:
        """Writes one row; an array becomes a list, and one curve per entry."""
        plain = {name: np.asarray(value).tolist() for name, value in row.items()}
        self._rows.write(jsonlines.line(plain))
        if self._board:
            curves = {}
            for name, value in plain.items():
                entries = enumerate(value) if isinstance(value, list) else [("", value)]
                curves |= {f"{name}/{at}" if at != "" else name: entry for at, entry in entries}
            self._board.write(curves, plain["step"])

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes one sample to samples.jsonl."""
        self._samples.write(jsonlines.line({"step": step, "prompt": prompt, "text": text}))

    def incident(self, row: Row) -> None:
        """Writes a row of incidents.jsonl; a number that is not finite becomes its name."""
        shown = lambda x: str(x) if isinstance(x, float) and not math.isfinite(x) else x
        self._incidents.write(jsonlines.line({name: shown(x) for name, x in row.items()}))
        self.flush()

    def flush(self) -> None:
        """Writes what waits for it, in a bucket."""
        for file in (self._rows, self._samples, self._incidents, self._board):
            if file is not None:
                file.flush()

    def _flush_often(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self.flush()

    def close(self) -> None:
        """Closes the files."""
        self._closed.set()
        for file in (self._rows, self._samples, self._incidents, self._board):
            if file is not None:
                file.close()


def scored(workdir: pathlib.Path, step: int, has_scores: bool, num_samples: int) -> bool:
    """Returns whether the validation of a step was written, to its end.

    Args:
      workdir: the run's directory.
      step: of the validation.
      has_scores: whether the run has a validation split.
      num_samples: texts that it samples.
    """
    of_step = lambda name: [row for row in _read(workdir / name) if row["step"] == step]
    has_row = any("validation_loss" in row for row in of_step(METRICS))
    return (has_row or not has_scores) and len(of_step(SAMPLES)) >= num_samples


def forget(workdir: pathlib.Path, step: int) -> None:
    """Deletes what was written of the validation of a step; raises StorageError if it cannot."""
    try:
        is_other = lambda row: row["step"] != step
        _keep(workdir / METRICS, lambda row: is_other(row) or "validation_loss" not in row)
        _keep(workdir / SAMPLES, is_other)
    except OSError as error:
        raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None


def _read(path: pathlib.Path) -> list[Row]:
    is_row = lambda row: isinstance(row, dict) and isinstance(row.get("step"), int)
    return [row for row in jsonlines.values(path) if is_row(row)] if path.exists() else []


def _keep(path: pathlib.Path, is_kept: Callable[[Row], bool]) -> None:
    """Deletes other rows and an incomplete last line, replacing the file atomically."""
    if not path.exists():
        return
    kept = "".join(jsonlines.line(row) for row in _read(path) if is_kept(row)).encode()
    place.of(path).rewrite(path, kept)
