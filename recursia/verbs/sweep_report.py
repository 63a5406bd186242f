"""`recursia sweep report`: fits and draws what a sweep found."""

import argparse
import json
import os
import pathlib
import tempfile
from typing import Any

from recursia import arguments, buckets, console, parsing
from recursia.errors import ConfigError, StorageError

_PICTURES = (".png", ".svg", ".pdf")
_DEFAULT = "report.png"
ABOUT = "Fit and draw what a sweep found: sizes at equal FLOPs, learning rates, or a ranking."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the sweep's directory, or its place in a bucket"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    about = f"a new .png, .svg or .pdf, with a .json beside it; default: {_DEFAULT} of the workdir"
    parser.add_argument("--out", type=parsing.workdir, help=about)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints a table and the fits, and writes a picture and a JSON object of all fits."""
    draw = _picture(given.out)
    from recursia.sweep import comparison, ranking, report, results, tables

    made = report.of(results.read(given.workdir))
    path = given.out or given.workdir / _DEFAULT
    values = report.to_json(made)
    with console.doing(f"drawing {path}"):
        _written(draw, made, str(given.workdir), path, values)
    if given.json:
        print(json.dumps({"picture": str(path), **values}))
        return
    tables.show(ranking.table(made.rows, made.metric))
    if made.arms:
        tables.show(comparison.table(made.arms, made.metric))
        print(comparison.METHOD)
    print("\n".join([*report.lines(made), f"{path}: drawn; {path.with_suffix('.json')}: all fits"]))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    trials = given.workdir / "trials"
    return arguments.command("report", workdir=trials / "TRIAL", compare=trials / "TRIAL")


def _written(draw: Any, made: Any, title: str, path: pathlib.Path, values: dict[str, Any]) -> None:
    from recursia.workdir import place

    text = json.dumps(values, indent=1) + "\n"
    here = place.of(path)
    try:
        here.put(path.with_suffix(".json"), text.encode())
        with tempfile.TemporaryDirectory() as near:
            drawn = pathlib.Path(near) / path.name
            draw(made, title, drawn)
            here.put(path, drawn.read_bytes())
    except OSError as error:
        raise StorageError(f"--out={path}: cannot be written ({error.strerror})") from None


def _picture(path: pathlib.Path | None) -> Any:
    """Returns what draws a report; refuses a place that is taken."""
    if path is not None:
        if path.suffix not in _PICTURES:
            raise ConfigError(f"--out={path}: ends in none of {', '.join(_PICTURES)}")
        for each in (path, path.with_suffix(".json")):
            if each.exists() or os.path.islink(each):
                raise ConfigError(f"--out={path}: {each} is there already; give a new file")
        if not buckets.is_place(path) and not path.parent.is_dir():
            raise ConfigError(f"--out={path}: there is no folder {path.parent}; give another")
    try:
        from recursia.sweep import picture
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sweep report: needs matplotlib ({error}); pip install 'recursia[plot]'"
        ) from None
    return picture.write
