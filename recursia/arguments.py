"""What may be typed: the verbs of `recursia`, and the options of each."""

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import typing
from collections.abc import Callable, Iterator
from typing import Any

from recursia import parsing
from recursia.meanings import meanings

DEPTH = "Takes --config.depth.FIELD=VALUE, such as exit_threshold, besides."
SEEDS = 2**31 - 1


def parser(runs: dict[str, Callable]) -> parsing.Parser:
    """Returns the parser of all verbs.

    Args:
      runs: what each verb calls with its options, by the words that are typed.
    """
    about = "Pretrain language models whose depth is made by using the same weights again."
    made = parsing.Parser(prog="recursia", description=about)
    made.add_argument("--version", action=_Version, help="versions of recursia, jax and Python")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    groups = {}
    for words, run in runs.items():
        group, _, name = words.rpartition(" ")
        if group and group not in groups:
            names = "|".join(each.split()[1] for each in runs if each.startswith(f"{group} "))
            about = GROUPS[group]
            of = verbs.add_parser(group, help=about, description=about)
            how = {"dest": f"{group}_verb", "required": True, "metavar": names}
            groups[group] = of.add_subparsers(**how)
        about, options = VERBS[words]
        under = groups.get(group, verbs)
        command = under.add_parser(name, help=about, description=about)
        command.set_defaults(run=run, takes_overrides=False, compiles=False)
        options(command)
    return made


def complete(parser: parsing.Parser) -> None:
    """Answers a shell that asks for completions, and ends; does nothing else."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete
        from argcomplete.finders import safe_actions

        safe_actions.update((parsing.Once, parsing.Add))
        argcomplete.autocomplete(parser)


class _Version(argparse.Action):
    """Prints versions and ends."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        of = {name: importlib.metadata.version(name) for name in ("recursia", "jax", "jaxlib")}
        print(", ".join(f"{n} {v}" for n, v in {**of, "Python": platform.python_version()}.items()))
        parser.exit()


def _train(parser: parsing.Parser) -> None:
    _config_option(parser)
    parser.add_argument("--workdir", type=parsing.path, help="the run's directory")
    parser.add_argument("--dry_run", action="store_true", help="print what it would cost, and stop")
    _compiling_option(parser)
    _process_options(parser)


def _eval(parser: parsing.Parser) -> None:
    _run_options(parser)
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
    _json_option(parser)
    _compiling_option(parser)
    _process_options(parser)


def _generate(parser: parsing.Parser) -> None:
    _run_options(parser)
    parser.set_defaults(takes_overrides=True)
    about = "a text to continue; may be repeated"
    how = {"type": parsing.something, "action": "append", "required": True}
    parser.add_argument("--prompt", help=about, **how)
    parser.add_argument(
        "--num_tokens", type=parsing.integer(1), default=128, help="to draw at most"
    )
    about = "of the draws; 0: the likeliest token"
    parser.add_argument("--temperature", type=parsing.real(0), default=0.8, help=about)
    _seed_option(parser, "of the draws")
    _compiling_option(parser)


def _budget(parser: parsing.Parser) -> None:
    _config_option(parser)
    about = "other configurations, by commas; may be repeated"
    parser.add_argument("--versus", type=parsing.names, action="add", default=(), help=about)
    about = "change steps, widths or layers until they cost what --config costs"
    parser.add_argument(
        "--match", choices=("none", "flops", "params", "cache"), default="none", help=about
    )
    about = "a folder for the configurations of --versus as they were changed"
    parser.add_argument("--output", type=parsing.path, help=about)
    about = "a folder for unshared models of equal parameters, FLOPs, and training FLOPs"
    parser.add_argument("--controls", type=parsing.path, help=about)
    _json_option(parser)


def _compile(parser: parsing.Parser) -> None:
    _config_option(parser)
    about = "v4, v5e, v5p or v6e and a slice (v5e:16x16), or GPUs (h100:8, h100:8x4)"
    parser.add_argument("--topology", help=f"{about}; default: the configuration's")
    parser.add_argument("--decode", action="store_true", help="and the drawing of a token")
    about = "change rematerialisation, microbatches, then meshes until it fits"
    parser.add_argument("--search", action="store_true", help=about)
    about = "programs that a search compiles at most; default: 8"
    parser.add_argument("--tries", type=parsing.integer(1), help=about)
    parser.add_argument("--output", type=parsing.path, help="a file for the JSON object")
    _json_option(parser)
    _compiling_option(parser)


def _parity(parser: parsing.Parser) -> None:
    about = "what the authors' code computed, and with which weights"
    parser.add_argument("file", nargs="+", metavar="FILE.npz", type=parsing.place, help=about)
    _json_option(parser)
    _compiling_option(parser)


def _recursive(parser: parsing.Parser) -> None:
    _run_options(parser)
    _config_option(parser)
    parser.add_argument("--output", type=parsing.path, required=True, help="a new directory")
    starts = ("stepwise", "average", "lower", "upper", "random")
    about = "layers that a shared entry is made of"
    parser.add_argument("--start", choices=starts, default="stepwise", help=about)
    parser.add_argument("--norms", choices=starts, help="the same for norms; default: --start")
    about = "adapters as near as they come to what sharing loses, or as a new run draws them"
    parser.add_argument("--adapters", choices=("nearest", "initial"), default="nearest", help=about)
    _seed_option(parser, "of what is drawn")
    _compiling_option(parser)


def _inspect(parser: parsing.Parser) -> None:
    parser.add_argument("directory", type=parsing.place, help="what `data prepare` wrote")


def _prepare(parser: parsing.Parser) -> None:
    from recursia.data import source
    from recursia.data.prepare import Options

    about = f"documents: {', '.join(source.kinds())}; may be repeated"
    how = {"nargs": "+", "action": "add", "type": parsing.place}
    parser.add_argument("--input", required=True, help=about, **how)
    parser.add_argument("--output", type=parsing.place, required=True, help="a new directory")
    about, hints = meanings(Options), typing.get_type_hints(Options)
    for field in dataclasses.fields(Options):
        hint = hints[field.name]
        how: dict[str, Any] = {"type": parsing.something}
        if isinstance(field.default, tuple):
            how = {"nargs": "*", "action": "add", "type": parsing.place}
        elif choices := typing.get_args(hint):
            how = {"choices": choices}
        elif hint in (int, float):
            how = {"type": parsing.integer(1) if hint is int else parsing.real(0, 1)}
        elif field.name == "tokenizer":
            how = {"type": parsing.place}
        elif not field.default:
            how = {"type": str}
        text = PREPARE.get(field.name) or about[field.name].replace("%", "%%")
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **how)


def _presets(parser: parsing.Parser) -> None:
    about = "a shipped configuration's name; default: all of them"
    name: Any = parser.add_argument("name", nargs="?", metavar="NAME", help=about)
    name.completer = _shipped
    _json_option(parser)


def _fields(parser: parsing.Parser) -> None:
    about = "FILE.py:PRESET or a shipped name such as mor:tiny"
    chosen: Any = parser.add_argument("config", metavar="CONFIG", type=parsing.place, help=about)
    chosen.completer = _configs
    about = "show what starts with it, such as train or model.depth; default: all"
    parser.add_argument("prefix", nargs="?", metavar="PREFIX", default="", help=about)
    parser.set_defaults(takes_overrides=True)
    _json_option(parser)


def _config_option(parser: parsing.Parser) -> None:
    text = "FILE.py:PRESET or a shipped name such as mor:tiny; then --config.a.b=value"
    chosen: Any = parser.add_argument("--config", type=parsing.place, required=True, help=text)
    chosen.completer = _configs
    parser.set_defaults(takes_overrides=True)


def _configs(prefix: str, **_: Any) -> Iterator[str]:
    """Completes a configuration: files first, then a file's presets."""
    from recursia import presets

    name, colon = prefix.partition(":")[:2]
    if colon:
        yield from presets.presets(name)
    else:
        from argcomplete import completers

        yield from (f"{name}:" for name in presets.shipped())
        yield from completers.FilesCompleter(("py",))(prefix)


def _shipped(prefix: str, **_: Any) -> tuple[str, ...]:
    from recursia import presets

    return presets.shipped()


def _run_options(parser: parsing.Parser) -> None:
    parser.add_argument("--workdir", type=parsing.path, required=True, help="the run's directory")
    parser.add_argument("--step", type=parsing.integer(0), help="a checkpoint; default: the latest")


def _json_option(parser: parsing.Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _seed_option(parser: parsing.Parser, of: str) -> None:
    parser.add_argument("--seed", type=parsing.integer(0, SEEDS), default=0, help=of)


def _compiling_option(parser: parsing.Parser) -> None:
    parser.set_defaults(compiles=True)
    about = "keep no compiled program for next time, and take none"
    parser.add_argument("--no_compilation_cache", action="store_true", help=about)


def _process_options(parser: parsing.Parser) -> None:
    about = "HOST:PORT of process 0 of several; default: as the environment says"
    parser.add_argument("--coordinator", help=about)
    about = "of the run; 1 by itself: no others; default: as the environment says"
    parser.add_argument("--num_processes", type=parsing.integer(1), help=about)
    about = "which of them this is, from 0; default: as the environment says"
    parser.add_argument("--process_id", type=parsing.integer(0), help=about)


PREPARE = {
    "tokenizer": "byte, bpe:SIZE (learned from the training split), a tokenizer.json, or a folder "
    "with encoder.json and vocab.bpe",
    "validation": "documents of the validation split; may be repeated",
}
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
    "presets": ("The shipped configurations, or the presets of one.", _presets),
    "fields": ("Every field of a configuration: meaning, type, default, value.", _fields),
}
