"""`recursia data tasks`: makes task files for `recursia eval` from data sets."""

import argparse
import json

from recursia import arguments, parsing

ABOUT = "Make local task files of lm-evaluation-harness, to evaluate without the net."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "a folder with blimp.jsonl, piqa_validation.jsonl and others, .gz or .zst or not"
    parser.add_argument("--input", type=parsing.path, required=True, help=about)
    parser.add_argument("--output", type=parsing.path, required=True, help="a new directory")


def run(given: argparse.Namespace) -> None:
    """Makes the files and prints the rows of each task."""
    from recursia.evaluate import tasks

    print(json.dumps(tasks.make(given.input, given.output), indent=2))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    how = {"tasks": "TASK", "task_files": given.output}
    return arguments.command("eval", workdir="runs/NAME", **how)
