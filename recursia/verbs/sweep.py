"""`recursia sweep`: runs the trials that a configuration file declares."""

import argparse

from recursia import arguments, parsing
from recursia.sweep import options as runner

ABOUT = "Run the trials that a configuration declares; the same command again resumes."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser, default="none, where another verb follows")
    runner.add(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int:
    """Writes the declaration, and runs what of it has no result."""
    runner.need(given, "config", "workdir")
    from recursia.sweep import declaration, runners

    return runners.begin(given, declaration.read(given.config, given.overrides))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    if given.dry_run:
        return "the same without --dry_run"
    return arguments.command("sweep results", workdir=given.workdir)
