"""What may be typed: the verbs of `recursia`, and the options of each."""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable

DEPTH = "Takes --config.depth.FIELD=VALUE, such as exit_threshold, besides."


def parser(runs: dict[str, Callable]) -> argparse.ArgumentParser:
    """Returns the parser of all verbs.

    Args:
      runs: what each verb calls with its options, by the words that are typed.
    """
    made = argparse.ArgumentParser(
        prog="recursia",
        description="Pretrain language models whose depth is made by using the same weights again.",
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    groups = {}
    for words, run in runs.items():
        group, _, name = words.rpartition(" ")
        if group and group not in groups:
            names = "|".join(each.split()[1] for each in runs if each.startswith(f"{group} "))
            about = GROUPS[group]
            of = verbs.add_parser(group, help=about, description=about, allow_abbrev=False)
            how = {"dest": f"{group}_verb", "required": True, "metavar": names}
            groups[group] = of.add_subparsers(**how)
        about, options = VERBS[words]
        under = groups.get(group, verbs)
        command = under.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(run=run, takes_overrides=False)
        options(command)
    return made


def _train(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument("--workdir", type=pathlib.Path, help="the run's directory")
    parser.add_argument("--dry_run", action="store_true", help="print what it would cost, and stop")
    _process_options(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--text", help="a text or jsonl file; else the run's validation split")
    parser.add_argument("--depths", type=_depths, default=(), help="recursions, such as 1,2,3")
    parser.add_argument("--mode", choices=("eval", "causal"), help="default: both if they differ")
    parser.add_argument("--num_batches", type=_count, default=0, help="default: the whole text")
    parser.add_argument("--baselines", action="store_true", help="beside n-grams, gzip and xz")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _process_options(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--prompt", action="append", required=True, help="may be repeated")
    parser.add_argument("--num_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)


def _budget(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument("--versus", type=_names, default=(), help="other configs, by commas")
    about = "change steps, widths or layers until they cost what --config costs"
    parser.add_argument(
        "--match", choices=("none", "flops", "params", "cache"), default="none", help=about
    )
    parser.add_argument("--output", type=pathlib.Path, help="a folder for their configs, as files")
    about = "a folder for unshared models of equal parameters, FLOPs, and training FLOPs"
    parser.add_argument("--controls", type=pathlib.Path, help=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _compile(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    about = "v4, v5e, v5p or v6e and a slice (v5e:16x16), or GPUs (h100:8, h100:8x4)"
    parser.add_argument("--topology", help=f"{about}; default: the config's")
    parser.add_argument("--decode", action="store_true", help="and the drawing of a token")
    about = "try meshes, microbatches and rematerialisation; rank what fits"
    parser.add_argument("--search", action="store_true", help=about)
    about = "programs that a search compiles; default: 6"
    parser.add_argument("--tries", type=functools.partial(_count, least=1), help=about)
    parser.add_argument("--output", type=pathlib.Path, help="a file for the JSON object")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _parity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", metavar="FILE.npz")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _recursive(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    _config_option(parser)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a new directory")
    starts = ("stepwise", "average", "lower", "upper", "random")
    parser.add_argument("--start", choices=starts, default="stepwise", help="layers to take")
    parser.add_argument("--norms", choices=starts, help="the same for norms; default: --start")
    parser.add_argument("--adapters", choices=("nearest", "initial"), default="nearest")
    parser.add_argument("--seed", type=int, default=0)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory")


def _prepare(parser: argparse.ArgumentParser) -> None:
    from recursia.data.prepare import Options

    parser.add_argument("--input", nargs="+", required=True, help=".txt, .jsonl; also .gz, .zst")
    parser.add_argument("--output", required=True, help="a new directory")
    for field in dataclasses.fields(Options):
        how = {"nargs": "*"} if isinstance(field.default, tuple) else {"type": type(field.default)}
        parser.add_argument(f"--{field.name}", default=field.default, **how)


def _config_option(parser: argparse.ArgumentParser) -> None:
    text = "FILE.py:PRESET or a shipped name such as mor:tiny; then --config.a.b=value"
    parser.add_argument("--config", required=True, help=text)
    parser.set_defaults(takes_overrides=True)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the run's directory")
    parser.add_argument("--step", type=int, help="a checkpoint; else the latest")


def _process_options(parser: argparse.ArgumentParser) -> None:
    about = "HOST:PORT of process 0 of several; default: as the environment says"
    parser.add_argument("--coordinator", help=about)
    parser.add_argument("--num_processes", type=int, help="of the run; 1 by itself: no others")
    parser.add_argument("--process_id", type=int, help="which of them this is, from 0")


def _count(typed: str, least: int = 0) -> int:
    if not typed.isdecimal() or int(typed) < least:
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes a number from {least}")
    return int(typed)


def _names(typed: str) -> tuple[str, ...]:
    return tuple(name for name in typed.split(",") if name)


def _depths(typed: str) -> tuple[int, ...]:
    if not all(depth.isdecimal() for depth in _names(typed)):
        raise argparse.ArgumentTypeError(
            f"got {typed!r}, takes numbers of recursions such as 1,2,3"
        )
    return tuple(map(int, _names(typed)))


GROUPS = {"convert": "Make one model of another.", "data": "Prepare and look at data."}
VERBS = {
    "train": ("Pretrain; the same command again resumes.", _train),
    "eval": (f"Score a checkpoint on text: bits per byte, nats. {DEPTH}", _eval),
    "generate": (f"Continue prompts with a checkpoint. {DEPTH}", _generate),
    "budget": ("Parameters, FLOPs, cache and memory, side by side.", _budget),
    "compile": (
        "Compile the training step for machines that are not here: fit, moves, speed.",
        _compile,
    ),
    "parity": ("Compare with what the authors' code computed.", _parity),
    "convert recursive": (
        "Make a recursive model of a dense run, or an unrolled one of a recursive run.",
        _recursive,
    ),
    "data prepare": ("Tokenise and pack text files.", _prepare),
    "data inspect": ("Say what a prepared directory holds.", _inspect),
}
