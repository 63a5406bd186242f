"""`recursia eval`: scores a checkpoint on text."""

import argparse
import json

from recursia import arguments, parsing

ABOUT = f"Score a checkpoint on text: bits per byte, nats. {arguments.DEPTH}"


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
    arguments.json_option(parser)
    arguments.compiling_option(parser)
    arguments.process_options(parser)


def run(given: argparse.Namespace) -> int:
    """Scores a checkpoint; returns 1 if a depth that was asked for is not there."""
    from recursia import distributed
    from recursia.evaluate import depths

    with distributed.joined(arguments.processes(given), is_preemptible=False):
        result = depths.evaluate(
            given.workdir,
            step=given.step,
            text=given.text,
            depths=given.depths,
            modes=(given.mode,) if given.mode else (),
            num_batches=given.num_batches,
            has_baselines=given.baselines,
            overrides=given.overrides,
        )
        if distributed.is_first():
            print(json.dumps(result) if given.json else depths.render(result))
    return 1 if "missing" in result else 0
