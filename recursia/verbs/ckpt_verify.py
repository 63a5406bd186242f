"""`recursia ckpt verify`: compares a run's checkpoints with the digests of their files."""

import argparse
import json

from recursia import arguments, parsing

ABOUT = "Compare checkpoints with the digests of their files; 1 if one is not known to be whole."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the run's directory"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    parser.add_argument("--step", type=parsing.integer(0), help="a checkpoint; default: all")
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Prints a line for each step; returns 1 unless the files of all match their digests."""
    from recursia.workdir import listing

    rows = listing.rows(given.workdir, given.step)
    checked = [row for row in rows if row["step"] is not None]
    if given.json:
        print(json.dumps({"checkpoints": checked}))
    else:
        print("\n".join(f"step {row['step']}: {_files(row)}" for row in checked))
    return 0 if all(row["verified"] for row in checked) else 1


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("eval", workdir=given.workdir)


def _files(row: dict) -> str:
    is_of_files = row["verified"] or (row["verified"] is None)
    return f"its files {row['files']}" if is_of_files else row["files"]
