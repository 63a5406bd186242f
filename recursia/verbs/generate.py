"""`recursia generate`: continues prompts."""

import argparse

from recursia import arguments, parsing
from recursia.errors import ConfigError

ABOUT = f"Continue prompts with a checkpoint. {arguments.DEPTH}"


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    parser.set_defaults(takes_overrides=True)
    about = "a text to continue; may be repeated"
    how = {"type": parsing.something, "action": "append", "required": True}
    parser.add_argument("--prompt", help=about, **how)
    parser.add_argument(
        "--num_tokens", type=parsing.integer(1), default=128, help="to draw at most"
    )
    about = "of the draws; 0: the likeliest token"
    parser.add_argument("--temperature", type=parsing.real(0), default=0.8, help=about)
    about = "draw from so many of the likeliest tokens; 0: from all"
    parser.add_argument("--top_k", type=parsing.integer(0), default=0, help=about)
    about = "draw from the likeliest tokens that add up to this probability; 1: from all"
    parser.add_argument("--top_p", type=parsing.real(0, 1), default=1.0, help=about)
    about = "draw from tokens at least this fraction as likely as the likeliest; 0: from all"
    parser.add_argument("--min_p", type=parsing.real(0, 1), default=0.0, help=about)
    arguments.seed_option(parser, "of the draws")
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints prompts and how they go on."""
    from recursia.generate import prompts
    from recursia.generate.sampling import Sampling

    try:
        sampling = Sampling(given.temperature, given.top_k, given.top_p, given.min_p)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    for text in prompts.continue_prompts(
        given.workdir,
        step=given.step,
        prompts=given.prompt,
        num_tokens=given.num_tokens,
        sampling=sampling,
        seed=given.seed,
        overrides=given.overrides,
    ):
        print(text, end="\n\n")
