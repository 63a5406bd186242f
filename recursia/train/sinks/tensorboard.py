"""TensorBoard's file of a run."""

import contextlib
import pathlib
import time
from typing import Any, ClassVar

from recursia import console, settings
from recursia.train.sinks.json_lines import METRICS
from recursia.train.sinks.sink import Row, Sink, curves
from recursia.workdir import place


class TensorBoard(Sink):
    """Writes curves, by the caller: an array becomes one curve per entry.

    The library's own writer has a thread, and a queue on which the caller waits for ever once the
    thread has met a full disk.
    """

    IS_ASIDE: ClassVar[bool] = False

    def __init__(self, workdir: pathlib.Path, start: int, run: settings.Run | None = None):
        """Opens no file before the first row.

        Args:
          workdir: the run's directory, in which a folder has the files of all starts.
          start: step from which the run goes on; TensorBoard hides what others say of later ones.
          run: not needed.
        """
        self._folder, self._start, self._file = workdir / "tensorboard", start, None
        self._is_late = False
        self._mirror = place.of(self._folder).mirror(self._folder)

    def write(self, row: Row) -> None:
        """Writes values by their names; those that cannot be written are lost, with one line."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        events: Any = event_pb2  # its classes are made at run time
        try:
            file = self._opened()
            for name, value in curves(row).items():
                summary = scalar(name, value)
                event = events.Event(wall_time=time.time(), step=row["step"], summary=summary)
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
