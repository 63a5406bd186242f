"""Makes units in several processes at once.

A worker is a process of its own that reads lines of JSON: first the request, then the numbers of
units. For each it writes the bytes of text done, as they are done, and at the end a line that says
so, or why not. It ends when nobody writes to it any more, such as when its parent is killed.
"""

import concurrent.futures
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from recursia import storage
from recursia.data import named
from recursia.data.partial import Partial
from recursia.data.request import Options, Request
from recursia.data.tokenizer import Tokenizer
from recursia.data.units import Advance, Unit
from recursia.errors import DataError, StorageError, UserError


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(
    partial: Partial,
    tokenizer: Tokenizer,
    units: Sequence[Unit],
    num_workers: int,
    advance: Advance,
) -> None:
    """Makes units, in several processes if there are several units and workers.

    Each worker's library has an equal share of the cores.

    Args:
      partial: holds the units.
      tokenizer: the one it keeps.
      units: those to make.
      num_workers: processes, at most.
      advance: is called with the bytes of text done since its last call.

    Raises:
      DataError: if a unit cannot be made, or a worker is killed; units that were made stay.
    """
    num_workers = min(num_workers, len(units))
    if num_workers <= 1:
        for unit in units:
            partial.make(unit, tokenizer, advance)
        return
    waiting: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    for unit in units:
        waiting.put(unit)
    failed = threading.Event()
    workers = [_Worker(partial, num_workers) for _ in range(num_workers)]

    def work(worker: _Worker) -> None:
        try:
            while not failed.is_set():
                worker.make(waiting.get_nowait(), advance)
        except queue.Empty:
            return
        except BaseException:
            failed.set()
            raise

    try:
        with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
            tasks = [pool.submit(work, worker) for worker in workers]
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
            except BaseException:
                failed.set()
                for worker in workers:
                    worker.process.kill()
                raise
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A worker, as its parent sees it."""

    def __init__(self, partial: Partial, num_workers: int):
        threads = str(max(1, cores() // num_workers))
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )
        self._send(_described(partial))

    def make(self, unit: Unit, advance: Callable[[float], None]) -> None:
        self._send(unit.number)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            if isinstance(answer, int):
                advance(answer)
            elif "error" in answer:
                raise (StorageError if answer.get("is_full") else DataError)(answer["error"])
            else:
                return
        names = ", ".join(part.source.path for part in unit.parts[:3])
        raise DataError(
            f"a worker ended with exit code {self.process.wait()} while it prepared {names}; the "
            "same command goes on, with fewer --num_workers if memory was short."
        )

    def _send(self, value: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()
        except OSError:  # it has ended, which `make` reports
            return

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def _described(partial: Partial) -> dict[str, Any]:
    files = {split: [each.named for each in named] for split, named in partial.asked.files.items()}
    options = dataclasses.asdict(partial.asked.options)
    named = {name: getattr(partial, name) for name in ("output", "path", "unit_bytes")}
    return {**named, "files": files, "options": options}


def _main() -> None:
    """Works until nobody writes to standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers it
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    described = json.loads(lines.get())
    options = described["options"] | {"validation": tuple(described["options"]["validation"])}
    files = {split: tuple(map(named.of, paths)) for split, paths in described["files"].items()}
    asked = Request(files, Options(**options))
    output, path, unit_bytes = (described[name] for name in ("output", "path", "unit_bytes"))
    partial = Partial(output, path, asked, unit_bytes)
    tokenizer = partial.tokenizer()
    assert tokenizer is not None
    answer = lambda value: print(json.dumps(value), flush=True)
    while True:
        unit = partial.units[json.loads(lines.get())]
        try:
            partial.make(unit, tokenizer, answer)
            answer({"done": unit.number})
        except UserError as error:
            answer({"error": str(error)})
        except OSError as error:
            said = f"{partial.path}: cannot be written ({error.strerror or error})."
            answer({"error": said, "is_full": error.errno in storage.FULL})


if __name__ == "__main__":
    _main()
