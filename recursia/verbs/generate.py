"""`recursia generate`: continues prompts."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recursia import arguments, console, parsing
from recursia.errors import ConfigError

if TYPE_CHECKING:
    from recursia.generate.continuation import Continuation
    from recursia.generate.prompts import Way
    from recursia.workdir.trained import Trained

SLOTS = 8  # of a batch, unless --slots says another number
ABOUT = f"Continue prompts with a checkpoint. {arguments.DEPTH}"


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    parser.set_defaults(takes_overrides=True)
    about = "a text to continue; may be repeated"
    how = {"type": parsing.something, "action": "append"}
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", help=about, **how)
    about = "a .jsonl of requests, which are served in slots; one answer a line"
    asked.add_argument("--requests", type=parsing.path, help=about)
    about = "a new .jsonl of the answers to --requests; default: standard output"
    parser.add_argument("--output", type=parsing.path, help=about)
    about = f"of the batch in which --requests are served; default: {SLOTS}"
    parser.add_argument("--slots", type=parsing.integer(1), help=about)
    about = "when slots of --requests are refilled; default: depth, after any recursion"
    parser.add_argument("--schedule", choices=("depth", "sequence", "static"), help=about)
    about = "to draw at most"
    parser.add_argument("--num_tokens", type=parsing.integer(1), default=128, help=about)
    about = "texts that end a continuation and are no part of it, such as $'\\n'; may be repeated"
    parser.add_argument("--stop", help=about, default=[], **how)
    about = "continuations of each prompt"
    parser.add_argument("--num_samples", type=parsing.integer(1), default=1, help=about)
    about = "recursions; default: as trained"
    parser.add_argument("--depth", type=parsing.integer(1), help=about)
    about = "of the draws; 0: the likeliest token"
    parser.add_argument("--temperature", type=parsing.real(0), default=0.8, help=about)
    about = "draw from so many of the likeliest tokens; 0: from all"
    parser.add_argument("--top_k", type=parsing.integer(0), default=0, help=about)
    about = "draw from the likeliest tokens that add up to this probability; 1: from all"
    parser.add_argument("--top_p", type=parsing.real(0, 1), default=1.0, help=about)
    about = "draw from tokens at least this fraction as likely as the likeliest; 0: from all"
    parser.add_argument("--min_p", type=parsing.real(0, 1), default=0.0, help=about)
    arguments.seed_option(parser, "of the draws")
    shown = parser.add_mutually_exclusive_group()
    about = "print text as it is drawn, as on a terminal"
    shown.add_argument("--stream", action="store_true", help=about)
    about = "print one JSON object a line for each continuation"
    shown.add_argument("--json", action="store_true", help=about)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints prompts and how they go on, or serves requests."""
    from recursia.generate import prompts
    from recursia.generate.continuation import Stops
    from recursia.generate.sampling import Sampling

    try:
        sampling = Sampling(given.temperature, given.top_k, given.top_p, given.min_p)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    stops = Stops(tuple(given.stop))
    way = prompts.Way(given.num_tokens, given.num_samples, sampling, stops, given.seed)
    _check(given)
    trained = prompts.load(given.workdir, given.step, given.depth, given.overrides)
    if given.requests is not None:
        _serve(given, trained, way)
        return
    texts = prompts.begin(trained, given.prompt, way)
    asked = [prompt for prompt in given.prompt for _ in range(given.num_samples)]
    steps = prompts.drawn(trained, texts, way)
    if not given.json and (given.stream or sys.stdout.isatty()):
        _stream(asked, texts, prompts.in_order(texts, steps))
        return
    about = "continuing the prompt" if len(texts) == 1 else f"continuing {len(texts)} texts"
    total = given.num_tokens * -(-len(texts) // prompts.AT_ONCE)
    with console.bar(about, total, "tokens") as advance:
        for _ in steps:
            advance(1)
    for prompt, text in zip(asked, texts, strict=True):
        print(_object(prompt, text) if given.json else f"{prompt}{text.text}\n")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("convert export", workdir=given.workdir, output="hf/NAME")


def _check(given: argparse.Namespace) -> None:
    """Refuses options of prompts beside requests, and the other way round."""
    of_requests = {name: getattr(given, name) for name in ("output", "slots", "schedule")}
    if given.requests is None:
        if unused := [name for name, value in of_requests.items() if value is not None]:
            raise ConfigError(f"--{unused[0]}: is of --requests, and there are none; give some")
        return
    if given.stream or given.num_samples > 1:
        name = "stream" if given.stream else "num_samples"
        raise ConfigError(f"--{name}: is of --prompt, and --requests are served; remove it")
    if given.output is not None and given.output.exists():
        raise ConfigError(f"--output={given.output}: is there already; give a new file")


def _serve(given: argparse.Namespace, trained: "Trained", way: "Way") -> None:
    """Writes an answer for each request of a file."""
    from recursia.generate import serving

    asked = serving.read(given.requests, trained, way)
    answers = serving.serve(trained, asked, given.slots or SLOTS, given.schedule or "depth")
    serving.write(answers, len(asked), given.output)


def _object(prompt: str, text: "Continuation") -> str:
    reason = {"finish_reason": text.finish_reason}
    return json.dumps({"prompt": prompt, "text": text.text, "tokens": text.tokens, **reason})


def _stream(
    asked: Sequence[str], texts: Sequence["Continuation"], pieces: Iterator[tuple[int, str]]
) -> None:
    """Prints texts as they are drawn; the first token takes longest."""
    with console.doing("reading the prompts"):
        piece = next(pieces)
    begun = -1
    while piece:
        at, new = piece
        print("" if at == begun else asked[at], end=new, flush=True)
        begun, piece = at, next(pieces, None)
        if piece is None or piece[0] != at:
            print("\n", flush=True)
