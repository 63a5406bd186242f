"""`recursia convert recursive`: initialises a recursive model from a dense one."""

import argparse
import dataclasses
import pathlib

from recursia import arguments, console, parsing
from recursia.errors import ConfigError

ABOUT = "Make a recursive model of a dense run, or an unrolled one of a recursive run."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    arguments.config_option(parser)
    parser.add_argument("--output", type=parsing.path, required=True, help="a new directory")
    starts = ("stepwise", "average", "lower", "upper", "random")
    about = "layers that a shared entry is made of"
    parser.add_argument("--start", choices=starts, default="stepwise", help=about)
    parser.add_argument("--norms", choices=starts, help="the same for norms; default: --start")
    about = "adapters as near as they come to what sharing loses, or as a new run draws them"
    parser.add_argument("--adapters", choices=("nearest", "initial"), default="nearest", help=about)
    arguments.seed_option(parser, "of what is drawn")
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Makes one model of another."""
    import jax

    from recursia import config
    from recursia.convert import recursive
    from recursia.workdir import trained

    run = config.load(given.config, given.overrides)
    with console.doing(f"loading {given.workdir}"):
        dense = trained.load(given.workdir, given.step)
        # One matrix after another: over several devices each would be a program of its own.
        params = jax.device_put(dense.params, jax.local_devices()[0])
    theirs = dense.model
    places = tuple(str(pathlib.Path(path).resolve()) for path in dense.paths)
    if places:  # a checkpoint from elsewhere has none: the configuration's own data stays
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, path=places))
    try:
        ours = run.model.sized(theirs.vocab_size)
        how = {"norms": given.norms, "adapters": given.adapters}
        key = jax.random.key(given.seed)
        with console.doing(f"making {given.config} of it"):
            weights = recursive.recursive(params, theirs, ours, given.start, **how, key=key)
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None
    trained.save(run, theirs.vocab_size, weights, dense.tokenizer, given.output)
    print(f"{given.output}: {given.config} made of {given.workdir} at step {dense.step}")
