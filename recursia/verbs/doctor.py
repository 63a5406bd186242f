"""`recursia doctor`: what a machine has, and how fast it is."""

import argparse
import json
import pathlib

from recursia import arguments, console, parsing

ABOUT = "Devices, versions, variables and speeds of this machine, safe to show to others."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "a directory of runs, or its place in a bucket: can it be written, and how fast"
    parser.add_argument("--workdir", type=parsing.workdir, help=about)
    arguments.json_option(parser)
    arguments.process_options(parser)


def run(given: argparse.Namespace) -> int:
    """Prints a table; returns 1 if the directory cannot be written."""
    from recursia import distributed
    from recursia.launch import doctor

    flags = arguments.processes(given)
    with distributed.joined(flags, is_preemptible=False, stacks=pathlib.Path()):
        with console.doing("measuring"):
            found = doctor.examine(given.workdir)
        given.is_silent = not distributed.is_first()
        if not given.is_silent:
            print(json.dumps(found) if given.json else doctor.render(found))
    return 0 if found.get("workdir", {"ok": True})["ok"] else 1


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("presets")
