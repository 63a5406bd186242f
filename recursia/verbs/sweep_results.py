"""`recursia sweep results`: the results of a sweep, ranked by a metric."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from recursia import arguments, buckets, jsonlines, parsing, safely
from recursia.errors import ConfigError

ABOUT = "The results of a sweep, ranked by a metric; as a table, as CSV or as JSON."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the sweep's directory, or its place in a bucket"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    about = "the least of which is the best: validation_loss, best_validation_loss, loss, ..."
    parser.add_argument("--metric", default="validation_loss", help=about)
    about = "write all columns as CSV to a file; - is standard output"
    parser.add_argument("--csv", type=_file, help=about)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints or writes the results."""
    from recursia.sweep import results, tables

    found = results.read(given.workdir)
    known = sorted({metric for result in found for metric in result.metrics})
    if known and given.metric not in known:
        raise ConfigError(f"--metric={given.metric}: no trial has it; there are {', '.join(known)}")
    ranked = results.ranked(found, given.metric)
    if given.csv:
        _write(given.csv, results.csv(ranked))
    if given.json:
        rows = [dataclasses.asdict(result) for result in ranked]
        print(json.dumps(jsonlines.strict({"metric": given.metric, "trials": rows})))
    elif given.csv != "-":
        tables.show(tables.results(ranked, given.metric))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("sweep report", workdir=given.workdir)


def _file(typed: str) -> Any:
    """Reads `-`, or the path of a file, which may be in a bucket."""
    return typed if typed == "-" else parsing.workdir(typed)


def _write(path: Any, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        return
    if not buckets.is_place(path):
        with safely.file(path, "csv") as part:
            part.write_bytes(text.encode())
        return
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise safely.unwritten(f"--csv={path}", error) from None
