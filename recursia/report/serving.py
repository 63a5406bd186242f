"""Writes a report, once or again and again while its run goes on, and serves it on 127.0.0.1."""

import contextlib
import functools
import http.server
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from recursia import buckets, console
from recursia.errors import StorageError, UserError
from recursia.report import page, record
from recursia.report.reading import Reading, read
from recursia.workdir import place, steps

EVERY = 5.0  # seconds between two looks at the run
HOST = "127.0.0.1"
_MINUTE = 60.0  # seconds between two pages of a run in a bucket
_Mark = tuple[object, ...]  # of what a report is made of: it changes when that does


class Report:
    """The report of a run, written to a file.

    Attributes:
      workdirs: of the run, and of those that it is compared with.
      out: the file.
    """

    def __init__(self, workdirs: Sequence[pathlib.Path], out: pathlib.Path):
        """Writes nothing yet."""
        self.workdirs, self.out = workdirs, out
        self._reading: Reading | None = None
        self._tried, self._absent = None, "Text is being read."

    def write(self, is_watched: bool = False, reads: bool = True) -> bool:
        """Writes the file; returns whether a process trains the run.

        Args:
          is_watched: whether the page is to load itself again while the run goes on.
          reads: whether a new checkpoint reads text, which takes long; else the page has what the
            one before has read.

        Raises:
          ConfigError: if a directory is no run's.
          StorageError: if the file cannot be written.
        """
        with console.doing("reading metrics"):
            records = record.read(self.workdirs)
        is_live = records[0].is_live
        if reads:
            self._read(is_live)
        with console.doing("drawing"):
            made = page.page(records, self._reading, self._absent, is_watched and is_live)
        part = self.out.with_name(f".{self.out.name}.part")
        try:
            part.write_text(made, encoding="utf-8")
            os.replace(part, self.out)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"--out={self.out}: cannot be written ({error.strerror})") from None
        return is_live

    @property
    def is_behind(self) -> bool:
        """Whether there is a checkpoint that has not tried to read text."""
        return self._tried != self._latest

    @property
    def _latest(self) -> int:
        return max(steps.finished(self.workdirs[0] / "checkpoints"), default=-1)

    def _read(self, is_live: bool) -> None:
        """Reads text with the latest checkpoint, unless it has; else says why not."""
        if not self.is_behind:
            return
        if is_live:
            jax.config.update("jax_platforms", "cpu")  # the run has the accelerators
        self._tried, self._absent = self._latest, ""
        try:
            with console.doing(f"reading text with the checkpoint of step {self._tried}"):
                self._reading = read(self.workdirs[0])
        except (UserError, jax.errors.JaxRuntimeError) as error:  # such as: out of memory
            before = self._reading and f"; step {self._reading.step} is shown"
            self._absent = f"No text was read: {str(error).partition(chr(10))[0]}{before or ''}."

    def mark(self) -> _Mark:
        """Returns what changes when there is something new to write."""
        folder = self.workdirs[0]
        found: list[object] = []
        for name in (record.METRICS, record.SAMPLES, record.INCIDENTS, "end.json"):
            with contextlib.suppress(OSError):
                found.append((name, (folder / name).stat().st_size))
        if buckets.is_place(folder):  # whose files have no sizes while they are parts
            found.append(time.monotonic() // _MINUTE)
        is_live = place.of(folder).is_live(folder)
        return *found, is_live, *steps.finished(folder / "checkpoints")


def watch(report: Report, say: Callable[[str], None], every: float = EVERY) -> None:
    """Writes the report again whenever there is something new, until no process trains the run.

    Args:
      report: of the run.
      say: prints a line.
      every: seconds between two looks.
    """
    mark = report.mark()
    if not report.write(is_watched=True, reads=False):
        report.write()
        return
    with serving(report.out) as address:
        say(f"{address}: the report, written again while the run goes on; Ctrl-C ends this")
        is_live = report.write(is_watched=True)
        while is_live:
            time.sleep(every)
            if (now := report.mark()) != mark:
                mark = now
                if report.is_behind:
                    report.write(is_watched=True, reads=False)
                is_live = report.write(is_watched=True)
        time.sleep(every)  # an open page still loads the last one


@contextlib.contextmanager
def serving(path: pathlib.Path) -> Iterator[str]:
    """Serves one file on this machine alone; yields its address."""
    handler = functools.partial(_Handler, path)
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request for / with the file."""

    def __init__(self, path: pathlib.Path, *request: object):
        self._path = path
        super().__init__(*request)  # pyright: ignore[reportArgumentType]

    def do_HEAD(self) -> None:
        """Sends what tells whether the file has changed."""
        self._send()

    def do_GET(self) -> None:
        """Sends the file."""
        self.wfile.write(self._send())

    def _send(self) -> bytes:
        if self.path != "/":
            self.send_error(404)
            return b""
        body, made = self._path.read_bytes(), self._path.stat().st_mtime_ns
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", str(made))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return body

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""
