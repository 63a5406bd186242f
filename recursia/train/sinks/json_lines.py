"""The files metrics.jsonl and samples.jsonl of a run; on a resumed run, after the restored step."""

import pathlib
from collections.abc import Callable

from recursia import jsonlines, settings
from recursia.errors import StorageError
from recursia.train.sinks.sink import Row, Sink
from recursia.workdir import place

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class JsonLines(Sink):
    """Appends rows and samples, as lines of JSON; while the disk is full, they wait in memory."""

    def __init__(self, workdir: pathlib.Path, start: int, run: settings.Run | None = None):
        """Opens the files.

        Args:
          workdir: the run's directory.
          start: the step that the run resumes from; rows of later steps are deleted.
          run: not needed.

        Raises:
          StorageError: if the files cannot be opened.
        """
        paths = workdir / METRICS, workdir / SAMPLES
        try:
            for path in paths:
                keep(path, lambda row: row["step"] <= start)
            self._rows, self._samples = map(place.of(workdir).lines, paths)
        except OSError as error:
            raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None

    def write(self, row: Row) -> None:
        """Writes a row of metrics.jsonl."""
        self._rows.write(jsonlines.line(row))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes a row of samples.jsonl."""
        self._samples.write(jsonlines.line({"step": step, "prompt": prompt, "text": text}))

    def flush(self) -> None:
        """Writes what waits for it, in a bucket."""
        self._rows.flush()
        self._samples.flush()

    def close(self) -> None:
        """Closes the files."""
        self._rows.close()
        self._samples.close()


def read(path: pathlib.Path) -> list[Row]:
    """Returns the rows of a file that have a step; none if there is no file."""
    return list(jsonlines.rows(path))


def keep(path: pathlib.Path, is_kept: Callable[[Row], bool]) -> None:
    """Deletes other rows and an incomplete last line, replacing the file atomically."""
    if not path.exists():
        return
    kept = "".join(jsonlines.line(row) for row in read(path) if is_kept(row)).encode()
    place.of(path).rewrite(path, kept)
