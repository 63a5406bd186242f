"""Reports that are kept beside compiled programs, and read again without tracing anything.

A report is kept under all that it depends on: the settings of the run, the topology, the source of
this package, the compilers and their flags.
"""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib

from recursia import buckets, budget, config, jsonfile, settings
from recursia.preflight import ladder, report
from recursia.workdir import trained

_PACKAGES = ("recursia", "recursia.kernels")
_UNRELATED = ("data", "checkpoint", "eval", "log", "topology")  # sections


def read(run: settings.Run, topology: str, folder: pathlib.Path | None) -> report.Report | None:
    """Returns the report of a run on a topology; None if none is kept in the folder."""
    if folder is None:
        return None
    try:
        return jsonfile.read(_path(run, topology, folder))
    except (OSError, ValueError):
        return None


def write(
    found: report.Report, run: settings.Run, topology: str, folder: pathlib.Path | None
) -> None:
    """Keeps a report; a None folder keeps nothing."""
    if folder is not None:
        with contextlib.suppress(OSError):  # it is examined again the next time
            folder.mkdir(parents=True, exist_ok=True)
            _path(run, topology, folder).write_text(json.dumps(found))


def _path(run: settings.Run, topology: str, folder: pathlib.Path) -> pathlib.Path:
    values = config.to_dict(run)
    for name in _UNRELATED:
        values.pop(name)
    flags = [os.environ.get(flag) for flag in ladder.FLAGS]
    teacher = values["distill"].pop("teacher")
    theirs = teacher and config.to_dict(trained.model_of(buckets.path(teacher)))
    parts = (values, theirs, budget.vocab_size(run), topology, ladder.versions(), flags)
    key = json.dumps([*parts, _source()], sort_keys=True)
    return folder / f"preflight-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _source() -> str:
    """Returns a digest of the source."""
    digest = hashlib.sha256()
    for name in _PACKAGES:
        folder = pathlib.Path(importlib.import_module(name).__path__[0])
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.json"))):  # sizes of kernels
            digest.update(path.read_bytes())
    return digest.hexdigest()
