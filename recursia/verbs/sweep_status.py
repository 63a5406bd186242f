"""`recursia sweep status`: how the trials of a sweep stand."""

import argparse
import dataclasses
import json

from recursia import arguments, console, jsonlines, parsing

ABOUT = "How the trials of a sweep stand, as their directories say."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the sweep's directory, or its place in a bucket"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints a row for each trial, and how many are in each state."""
    from recursia.sweep import directory, engines, standing, tables

    sweep = directory.read(given.workdir)
    with console.doing(f"reading {len(sweep.trials)} trials"):
        found, trials = standing.read(sweep), sweep.all()
    counts = standing.counts(found)
    if given.json:
        jobs = engines.jobs(given.workdir)
        rows = [
            {**dataclasses.asdict(trial), **dataclasses.asdict(each), "job": jobs.get(each.name)}
            for trial, each in zip(trials, found, strict=True)
        ]
        shown = {"config": sweep.config, "counts": counts, "trials": rows}
        print(json.dumps(jsonlines.strict(shown)))
        return
    tables.show(tables.standings(list(zip(trials, found, strict=True))))
    print("\n".join([*tables.reasons(found), ""]), end="")
    print(f"{len(found)} trials: {standing.in_words(counts)}")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("sweep results", workdir=given.workdir)
