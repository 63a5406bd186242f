"""The starts of a run: with which configuration and on what each went on, a row of starts.jsonl."""

import contextlib
import importlib.metadata
import pathlib
import time
from typing import Any

import jax

from recursia import jsonlines
from recursia.workdir import place

FILE = "starts.jsonl"


def append(workdir: pathlib.Path, step: int, name: str, peak_flops: float) -> None:
    """Appends a row for a start; a full disk loses the row and stops nothing.

    Args:
      workdir: the run's directory.
      step: after which it goes on.
      name: of the configuration, as it was typed.
      peak_flops: what all devices could do, in FLOP/s.
    """
    row = {
        "step": step,
        "config": name,
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "peak_flops": peak_flops,
        "recursia": importlib.metadata.version("recursia"),
        "jax": jax.__version__,
        "time": round(time.time(), 3),
    }
    with contextlib.suppress(OSError):
        place.of(workdir).append(workdir / FILE, jsonlines.line(row))


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows, in order; none of a run that an older version began."""
    return list(jsonlines.rows(workdir / FILE))
