"""`recursia data inspect`: describes a prepared directory."""

import argparse
import json

from recursia import parsing

ABOUT = "Say what a prepared directory holds."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    parser.add_argument("directory", type=parsing.place, help="what `data prepare` wrote")


def run(given: argparse.Namespace) -> None:
    """Prints what a prepared directory holds."""
    from recursia.data import prepare

    print(json.dumps(prepare.inspect(given.directory), indent=2))
