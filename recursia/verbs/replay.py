"""`recursia replay`: repeats one step of a run, and says whether data or machine is at fault."""

import argparse
import dataclasses
import json

from recursia import arguments, parsing

ABOUT = "Repeat a step twice: 1 if a machine is at fault, 0 if the data, the program or nothing."
_SHOWN = 4  # rows


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the run's directory"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    about = "the step to repeat, from the checkpoint before it"
    parser.add_argument("--step", type=parsing.integer(1), required=True, help=about)
    arguments.json_option(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int:
    """Prints what the step gave and the verdict; returns 1 if a machine is at fault."""
    from recursia.train.replay import replay

    found = replay(given.workdir, given.step)
    if given.json:
        print(json.dumps({**dataclasses.asdict(found), "verdict": found.verdict()}))
        return int(found.is_machine)
    recorded = found.recorded and ", recorded {loss} and {gradient_norm}".format(**found.recorded)
    print(
        f"step {found.step} from step {found.start}: loss {found.loss}, gradient norm "
        f"{found.gradient_norm}{recorded or ''}"
    )
    if found.fault:
        print(found.fault)
    rows = ", ".join(f"{place} {row}" for place, row in found.rows[:_SHOWN])
    more = f" and {len(found.rows) - _SHOWN} more" if len(found.rows) > _SHOWN else ""
    print(f"batch {found.batch}: rows {rows}{more}")
    print(found.verdict())
    return int(found.is_machine)


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("ckpt verify", workdir=given.workdir)
