"""`recursia data facts`: makes two-hop facts, to train on and to test their composition."""

import argparse
import json

from recursia import arguments, parsing

ABOUT = "Make two-hop facts to train on, and a test of compositions covered by them or not."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    parser.add_argument("--output", type=parsing.path, required=True, help="a new directory")
    about = "that facts are of, one character each"
    parser.add_argument("--num_tokens", type=parsing.integer(2), default=20, help=about)
    about = "of two hops that the training text has"
    parser.add_argument("--num_compositions", type=parsing.integer(1), default=2400, help=about)
    about = "share of the first hops, and of the second, that no such composition takes"
    parser.add_argument("--held_out", type=parsing.real(0, 1), default=0.2, help=about)
    about = "contexts in which equivalent first hops agree, at least"
    parser.add_argument("--evidence", type=parsing.integer(1), default=4, help=about)
    about = "of each split that are tested, at most"
    parser.add_argument("--num_rows", type=parsing.integer(1), default=500, help=about)
    about = "leave single hops out of the training text, as the paper does"
    parser.add_argument("--compositions_only", action="store_true", help=about)
    arguments.seed_option(parser, "of all draws")


def run(given: argparse.Namespace) -> None:
    """Makes the files and prints how many compositions are seen, covered and uncovered."""
    from recursia.evaluate import two_hop

    sizes = given.num_tokens, given.num_compositions, given.held_out
    facts = two_hop.draw(*sizes, given.seed)
    how = {"k": given.evidence, "num_rows": given.num_rows, "seed": given.seed}
    has_hops = not given.compositions_only
    print(json.dumps(two_hop.write(facts, given.output, has_hops=has_hops, **how), indent=2))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("data tasks", input=given.output, output="TASKS")
