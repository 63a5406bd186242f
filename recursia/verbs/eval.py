"""`recursia eval`: scores a checkpoint on text and tasks."""

import argparse
import json
import os
import pathlib
from typing import Any

from recursia import arguments, console, parsing
from recursia.errors import ConfigError

ABOUT = f"Score a checkpoint on text and tasks. {arguments.DEPTH}"


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    parser.set_defaults(takes_overrides=True)
    about = "a text or jsonl file; default: the run's validation split"
    parser.add_argument("--text", type=parsing.place, help=about)
    about = "recursions, such as 1,2,3; may be repeated; default: as trained"
    parser.add_argument("--depths", type=parsing.depths, action="add", default=(), help=about)
    about = "route as published, or as decoding must; default: both if they differ"
    parser.add_argument("--mode", choices=("eval", "causal"), help=about)
    about = "of batch_size sequences, to read at most; 0: the whole text"
    parser.add_argument("--num_batches", type=parsing.integer(0), default=0, help=about)
    parser.add_argument("--baselines", action="store_true", help="beside n-grams, gzip and xz")
    about = "a share of the tokens for each recursion, such as 1,0.5, in mode eval; may be repeated"
    parser.add_argument("--capacity", type=_shares, action="append", default=[], help=about)
    about = "statistics of the choices of experts and recursions, of the first 16,384 tokens"
    parser.add_argument("--routing", action="store_true", help=about)
    about = "with --routing, a new .npz for the experts and recursions of every token"
    parser.add_argument("--choices", type=parsing.arrays, metavar="FILE.npz", help=about)
    about = "of lm-evaluation-harness, by commas; needs recursia[eval]"
    parser.add_argument("--tasks", type=_names, action="add", default=(), help=about)
    about = "a folder that `recursia data tasks` made; default: the harness's own tasks"
    parser.add_argument("--task_files", type=parsing.path, help=about)
    about = "examples before each prompt; default: as the task says"
    parser.add_argument("--num_fewshot", type=parsing.integer(0), help=about)
    about = "rows of each task to score at most; default: all"
    parser.add_argument("--limit", type=parsing.integer(1), help=about)
    arguments.seed_option(parser, "of examples and draws")
    about = "a new .png, .svg or .pdf; needs recursia[plot]"
    parser.add_argument("--picture", type=parsing.picture, help=about)
    arguments.json_option(parser)
    arguments.compiling_option(parser)
    arguments.process_options(parser)


def run(given: argparse.Namespace) -> int:
    """Scores a checkpoint; returns 1 if a depth that was asked for is not there."""
    from recursia import distributed
    from recursia.evaluate import printout, tables

    if given.capacity and given.mode == "causal":
        raise ConfigError("--capacity: is of mode eval, and --mode=causal was given; drop one")
    if given.choices and not given.routing:
        raise ConfigError("--choices: is of --routing, which was not given; add it")
    draw, suite = _picture(given.picture), _suite(given)
    flags = arguments.processes(given)
    with distributed.joined(flags, is_preemptible=False, stacks=given.workdir):
        result = tables.evaluate(
            given.workdir,
            step=given.step,
            text=given.text,
            depths=given.depths,
            modes=(given.mode,) if given.mode else (),
            capacities=tuple(given.capacity),
            num_batches=given.num_batches,
            has_baselines=given.baselines,
            has_routing=given.routing,
            choices=given.choices,
            overrides=given.overrides,
            suite=suite,
        )
        given.is_silent = not distributed.is_first()
        if not given.is_silent:
            print(json.dumps(result) if given.json else printout.render(result))
            draw(result)
    return 1 if "missing" in result else 0


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("generate", workdir=given.workdir, prompt="It was a")


def _suite(given: argparse.Namespace) -> Any:
    """Returns the tasks that were asked for, or None."""
    options = {name: getattr(given, name) for name in ("task_files", "num_fewshot", "limit")}
    if not given.tasks:
        if unused := [name for name, value in options.items() if value is not None]:
            raise ConfigError(f"--{unused[0]}: is of tasks, and there are none; give --tasks")
        return None
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars, read when it is imported
    try:
        with console.doing("loading the harness"):
            from recursia.evaluate.task_scores import Tasks
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tasks: needs lm-evaluation-harness ({error}); pip install 'recursia[eval]'"
        ) from None
    return Tasks(
        given.tasks,
        given.task_files,
        num_fewshot=given.num_fewshot,
        limit=given.limit,
        seed=given.seed,
    )


def _picture(path: pathlib.Path | None) -> Any:
    """Returns what draws a result, or does nothing where no picture was asked for."""
    if path is None:
        return lambda result: None
    try:
        from recursia.evaluate import picture
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--picture: needs matplotlib ({error}); pip install 'recursia[plot]'"
        ) from None
    return lambda result: picture.write(result, path)


def _names(typed: str) -> tuple[str, ...]:
    """Reads names by commas."""
    if not (found := tuple(name for name in typed.split(",") if name)):
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes names of tasks, by commas")
    return found


def _shares(typed: str) -> tuple[float, ...]:
    """Reads shares of tokens by commas."""
    if not (found := tuple(parsing.real(0, 1)(share) for share in typed.split(",") if share)):
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes shares of tokens such as 1,0.5")
    return found
