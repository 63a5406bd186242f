"""`recursia data inspect`: describes a prepared directory."""

import argparse
import json

from recursia import arguments, buckets, parsing

ABOUT = "Say what a prepared directory holds, and whether its files are whole."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    parser.add_argument("directory", type=parsing.place, help="what `data prepare` wrote")


def run(given: argparse.Namespace) -> None:
    """Prints what a prepared directory holds, once its files are found whole."""
    from recursia.data import manifest, prepare, verification

    remembered = buckets.path(given.directory) / verification.FILE
    verification.checked((given.directory,), remembered, manifest.SPLITS)
    print(json.dumps(prepare.inspect(given.directory), indent=2))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training("PRESET", {"data.path": given.directory})
