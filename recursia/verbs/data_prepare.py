"""`recursia data prepare`: tokenises and packs documents."""

import argparse
import dataclasses
import json
import typing
from typing import Any

from recursia import parsing
from recursia.meanings import meanings

ABOUT = "Tokenise and pack documents."
_HELP = {
    "tokenizer": "byte, bpe:SIZE (learned from the training split), a tokenizer.json, or a folder "
    "with encoder.json and vocab.bpe",
    "validation": "documents of the validation split; may be repeated",
}


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
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
        text = _HELP.get(field.name) or about[field.name].replace("%", "%%")
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **how)


def run(given: argparse.Namespace) -> None:
    """Prepares text and prints what came of it."""
    from recursia.data import prepare

    fields = [field.name for field in dataclasses.fields(prepare.Options)]
    chosen = prepare.Options(**{name: getattr(given, name) for name in fields})
    manifest = prepare.prepare(given.input, given.output, **vars(chosen))
    print(json.dumps(manifest["splits"], indent=2))
