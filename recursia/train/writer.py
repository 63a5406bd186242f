"""What a run writes beside its checkpoints: rows, samples, incidents and TensorBoard's curves.

A full disk delays these files and ends nothing: rows wait in memory until they can be written.
"""

import collections
import contextlib
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from recursia import console, jsonlines
from recursia.errors import StorageError

METRICS, SAMPLES, INCIDENTS = "metrics.jsonl", "samples.jsonl", "incidents.jsonl"
MOST_WAITING = 100_000  # lines of a file that wait in memory; the oldest are lost beyond
Row = dict[str, Any]


class Lines:
    """A file to which lines are appended, whole or not at all."""

    def __init__(self, path: pathlib.Path):
        """Opens the file, and makes it if there is none."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(self._file).st_size
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=MOST_WAITING)
        self._is_late = False

    def write(self, line: str) -> None:
        """Appends a line, after those that wait; if that fails, it waits too."""
        self._waiting.append(line.encode("utf-8"))
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            if not self._is_late:
                console.say(
                    f"{self.path}: cannot be written ({error.strerror}); its lines wait in memory, "
                    "and the run goes on"
                )
            self._is_late = True
            return
        if self._is_late:
            console.say(f"{self.path}: is written again, and complete")
        self._is_late = False

    def _append(self, raw: bytes) -> None:
        rest = raw
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._end += len(raw)

    def close(self) -> None:
        """Closes the file; says how many lines are lost, if any are."""
        os.close(self._file)
        if self._waiting:
            console.say(f"{self.path}: {len(self._waiting)} lines could not be written")


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
            if not self._is_late:
                console.say(
                    f"{self._folder}: cannot be written ({error.strerror}); {METRICS} will have "
                    "what TensorBoard lacks"
                )
            self._is_late = True
            self.close()

    def _opened(self) -> Any:
        if self._file is None:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

            events: Any = event_pb2
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            log = events.SessionLog(status=events.SessionLog.START)
            self._file.write_event(events.Event(step=self._start + 1, session_log=log))
        return self._file

    def close(self) -> None:
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
        try:
            for path in paths[:2]:
                _keep(path, lambda row: row["step"] <= start)
            self._rows, self._samples, self._incidents = map(Lines, paths)
        except OSError as error:
            raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None
        self._board = Board(workdir / "tensorboard", start) if tensorboard else None

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

    def close(self) -> None:
        """Closes the files."""
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
    if kept == path.read_bytes():
        return
    new = path.with_suffix(".part")
    new.write_bytes(kept)
    os.replace(new, path)
