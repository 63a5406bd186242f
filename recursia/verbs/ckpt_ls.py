"""`recursia ckpt ls`: lists a run's checkpoints."""

import argparse
import json

from recursia import arguments, parsing

ABOUT = "List a run's checkpoints: step, age, size, validation loss, and whether files are whole."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the run's directory"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    about = "do not read the files, which takes long for large ones"
    parser.add_argument("--no_reading", action="store_true", help=about)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints a row for each checkpoint, and for each folder that was set aside."""
    from recursia.workdir import listing

    rows = listing.rows(given.workdir, reads=not given.no_reading)
    print(json.dumps({"checkpoints": rows}) if given.json else listing.render(rows))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("eval", workdir=given.workdir)
