"""`recursia data prepare`: tokenises and packs documents."""

import argparse
import dataclasses
import json
import typing
from typing import Any

from recursia import arguments, console, parsing
from recursia.meanings import meanings

ABOUT = "Tokenise and pack documents."
_HELP = {
    "tokenizer": "byte, bpe:SIZE (learned from the training split), a tokenizer.json, or a folder "
    "with encoder.json and vocab.bpe",
    "validation": "documents of the validation split; may be repeated",
}


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    from recursia.data import named
    from recursia.data.prepare import Options

    about = f"documents: {', '.join(named.kinds())}; may be repeated"
    how = {"nargs": "+", "action": "add", "type": parsing.place}
    parser.add_argument("--input", required=True, help=about, **how)
    parser.add_argument(
        "--output", type=parsing.place, required=True, help="a new directory, or gs:// or s3://"
    )
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
        text = _HELP.get(field.name) or about[field.name].replace("%", "%%")
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **how)
    about = "processes that tokenise at once; 0 is one for each core"
    parser.add_argument("--num_workers", type=parsing.integer(0), default=0, help=about)
    about = (
        "folder on disk for unfinished work; without it OUTPUT.partial, or, if the output is in a "
    )
    about += "bucket, its last name and .partial in the current folder"
    parser.add_argument("--partial", type=parsing.place, default="", help=about)
    about = "make the i-th of n parts only; the same command without it makes the rest and joins"
    parser.add_argument("--part", type=_part, metavar="i/n", help=about)


def run(given: argparse.Namespace) -> None:
    """Prepares text and prints what came of it."""
    from recursia.data import prepare

    fields = [field.name for field in dataclasses.fields(prepare.Options)]
    options = prepare.Options(**{name: getattr(given, name) for name in fields})
    how = {"num_workers": given.num_workers, "part": given.part, "partial_folder": given.partial}
    manifest = prepare.prepare(given.input, given.output, options, **how)
    if manifest is not None:
        print(json.dumps(manifest["splits"], indent=2))
    else:
        number, count = given.part
        console.say(f"part {number} of {count} is made; the same without --part joins them")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    if given.part:
        return "the same without --part, when all parts are made"
    return arguments.training("PRESET", {"data.path": given.output})


def _part(typed: str) -> tuple[int, int]:
    """Reads "2/8"."""
    number, _, count = typed.partition("/")
    if not (_is_digits(number) and _is_digits(count) and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{typed!r} is not a part such as 2/8, from 1/8 to 8/8")
    return int(number), int(count)


def _is_digits(typed: str) -> bool:
    return typed.isascii() and typed.isdecimal() and len(typed) < 10
