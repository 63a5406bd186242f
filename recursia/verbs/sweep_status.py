"""`recursia sweep status`: how the trials of a sweep stand."""

import argparse
import dataclasses
import json

from recursia import arguments, parsing

ABOUT = "How the trials of a sweep stand, as their directories say."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    parser.add_argument("--workdir", type=parsing.path, required=True, help="the sweep's directory")
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints a row for each trial, and how many are in each state."""
    from recursia.sweep import directory, engines, standing, tables

    sweep = directory.read(given.workdir)
    found, trials = standing.read(sweep), [sweep.trial(name) for name in sweep.trials]
    counts = standing.counts(found)
    if given.json:
        jobs = engines.jobs(given.workdir)
        rows = [
            {**dataclasses.asdict(trial), **dataclasses.asdict(each), "job": jobs.get(each.name)}
            for trial, each in zip(trials, found, strict=True)
        ]
        print(json.dumps({"config": sweep.config, "counts": counts, "trials": rows}))
        return
    tables.show(tables.standings(list(zip(trials, found, strict=True))))
    print("\n".join([*tables.reasons(found), ""]), end="")
    print(f"{len(found)} trials: {standing.in_words(counts)}")
