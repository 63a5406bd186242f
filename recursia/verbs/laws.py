"""`recursia laws`: tries on a model what every model obeys."""

import argparse
import dataclasses
import json

from recursia import arguments, console, parsing

ABOUT = "Try the laws on a model: causality, decoding, sharing, counts."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser)
    arguments.seed_option(parser, "of parameters")
    arguments.json_option(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int:
    """Prints whether a model obeys each law; returns 1 if it breaks one."""
    from recursia import config, laws

    verdicts = laws.check(config.load(given.config, given.overrides).model, given.seed)
    found = []
    for law in laws.LAWS:
        with console.doing(f"trying {law}"):
            found.append(verdict := next(verdicts))
        if not given.json:
            print(verdict, flush=True)
    if given.json:
        print(json.dumps({"laws": [dataclasses.asdict(verdict) for verdict in found]}))
    return int(any(verdict.wrong for verdict in found))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training(given.config, given.overrides)
