"""`recursia sweep resume`: runs what of a sweep has no result yet."""

import argparse

from recursia import arguments, parsing
from recursia.sweep import options as runner

ABOUT = "Run the trials of a sweep that have no result yet."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    runner.add(parser)
    arguments.compiling_option(parser)
    parser.set_defaults(config="")


def run(given: argparse.Namespace) -> int:
    """Runs what has no result."""
    runner.need(given, "workdir")
    from recursia.sweep import runners

    return runners.resume(given)


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("sweep results", workdir=given.workdir)
