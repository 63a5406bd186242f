"""`recursia budget`: compares what models cost."""

import argparse
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

from recursia import arguments, buckets, console, parsing
from recursia.errors import ConfigError, UserError

if TYPE_CHECKING:
    from recursia import settings

ABOUT = "Parameters, FLOPs, cache and memory, side by side."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser)
    about = "other configurations, by commas; may be repeated"
    parser.add_argument("--versus", type=parsing.names, action="add", default=(), help=about)
    about = "change steps, widths or layers until they cost what --config costs"
    parser.add_argument(
        "--match", choices=("none", "flops", "params", "cache"), default="none", help=about
    )
    about = "a folder for the configurations of --versus as they were changed"
    parser.add_argument("--output", type=parsing.path, help=about)
    about = "a folder for unshared models of equal parameters, FLOPs, training FLOPs, or both"
    parser.add_argument("--controls", type=parsing.path, help=about)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints what models cost, side by side."""
    from recursia import budget as cost
    from recursia import config, matching

    names = [given.config, *given.versus]
    if len(set(names)) < len(names):
        raise ConfigError(f"--versus={','.join(given.versus)}: a name stands twice; give others")
    if given.output and not given.versus:
        raise ConfigError("--output: writes the models of --versus; give --versus=B,C")
    if given.controls:
        return _controls(given)
    before = {
        name: config.load(name, given.overrides if not i else {}) for i, name in enumerate(names)
    }
    with console.doing("making models equal") if given.match != "none" else nullcontext():
        runs = matching.matched(before, given.match)
    first, *others = cost.compare(runs, given.match)
    if any(run.distill.teacher for run in runs.values()):
        for row, run in zip((first, *others), runs.values(), strict=True):
            row["teacher_flops_per_token"] = _teacher_flops(run, row["vocab_size"])
    for row in others:
        row["overrides"] = matching.overrides(before[row["name"]], runs[row["name"]])
    if given.output:
        made = {name: runs[name] for name in given.versus}
        about = f"changed until it equals {arguments.typed(given)} by --match={given.match}."
        for row, path in zip(others, matching.write(given.output, made, about), strict=True):
            row["path"] = path
    if given.json:
        print(json.dumps({**first, "versus": {row["name"]: row for row in others}}))
        return
    print(cost.render([first, *others]))
    for row in others if given.match != "none" else ():
        print(f"--config={row['name']}", matching.typed(row["overrides"]))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training(given.config, given.overrides)


def _teacher_flops(run: "settings.Run", rows: int) -> float:
    """Returns the FLOPs that a run's teacher adds to the training of a token; 0 without one."""
    if not (place := run.distill.teacher):
        return 0.0
    from recursia import accounting
    from recursia.workdir import trained

    try:
        teacher = trained.model_of(buckets.path(place)).sized(rows)
    except UserError as error:
        raise type(error)(f"config.distill.teacher: {error}") from None
    length, learns = run.train.seq_len, run.distill.weight > 0
    return accounting.teacher_flops(run.model.sized(rows), teacher, length, learns) / length


def _controls(given: argparse.Namespace) -> None:
    from recursia import budget as cost
    from recursia import config, matching

    if given.versus or given.match != "none":
        raise ConfigError("--controls: takes neither --versus nor --match; run them by themselves")
    run = config.load(given.config, given.overrides)
    with console.doing("making controls"):
        made = matching.controls(run)
    first, *others = cost.compare({given.config: run, **made}, "none")
    paths = matching.write(given.controls, made, f"a control of {arguments.typed(given)}.")
    for row, path in zip(others, paths, strict=True):
        equal = matching.CONTROLS[row["name"]]
        row |= {"path": path, "equal": equal, "error": row[equal] / first[equal] - 1}
    if given.json:
        controls = {row["name"]: row for row in others}
        print(json.dumps({**first, "versus": {}, "controls": controls}))
        return
    print(cost.render([first, *others]))
    for row in others:
        print(f"--config={row['path']}  {row['equal'].replace('_', ' ')} {row['error']:+.2%}")
