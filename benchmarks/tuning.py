"""The fastest sizes of the kernels of a program, for the tables of `recursia.kernels.tuned`."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax

from recursia.kernels import tuned

GAIN = 0.98  # of the time before: less is noise
Key = tuple[str, str, str]  # op, backend, shapes


@contextlib.contextmanager
def sizes(chosen: dict[Key, Any]) -> Iterator[dict[Key, Any]]:
    """Makes kernels take some sizes; yields those that programs lowered meanwhile took."""
    look_up, taken = tuned.look_up, {}

    def told(default: Any, device_kind: str, op: str, backend: str, arrays: Any) -> Any:
        key = op, backend, tuned.shapes(arrays)
        config = chosen.get(key) or look_up(default, device_kind, op, backend, arrays)
        return taken.setdefault(key, config)

    tuned.look_up = told
    jax.clear_caches()
    try:
        yield taken
    finally:
        tuned.look_up = look_up
        jax.clear_caches()


def tune(timed: Callable[[], float]) -> dict[Key, dict[str, Any]]:
    """Returns the entries that make a program faster: each size is doubled or halved while it does.

    Args:
      timed: lowers the program anew and returns its seconds.
    """
    with sizes({}) as found:
        best = timed()
    chosen, entries = {}, {}
    for key, start in found.items():
        before, kept = best, start
        for field in dataclasses.fields(start):
            for factor in (2.0, 0.5):
                while True:
                    size = int(getattr(kept, field.name) * factor)
                    try:
                        tried = dataclasses.replace(kept, **{field.name: max(size, 1)})
                        with sizes({**chosen, key: tried}):
                            seconds = timed()
                    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
                        break  # a size that the kernel or the device does not take
                    if seconds > GAIN * best:
                        break
                    best, kept = seconds, tried
        if kept != start:
            chosen[key] = kept
            entries[key] = {"config": kept, "seconds": best, "before": before}
    return entries


def write(device_kind: str, entries: dict[Key, dict[str, Any]], **told: Any) -> None:
    """Adds entries, and what is told of the measurement, to the table of a device."""
    file = tuned.path(device_kind)
    table = tuned.table(file)
    for (op, backend, shapes), entry in entries.items():
        entry = {**entry, **told, "config": dataclasses.asdict(entry["config"])}
        table.setdefault(op, {}).setdefault(backend, {})[shapes] = entry
    if entries:
        file.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        tuned.table.cache_clear()
