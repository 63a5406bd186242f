"""`recursia convert recursive`: initialises a recursive model from a dense one."""

import argparse
import dataclasses

from recursia import arguments, buckets, console, parsing
from recursia.errors import ConfigError

ABOUT = "Make a recursive model of a dense run, or an unrolled one of a recursive run."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    arguments.config_option(parser, "that of --workdir, with what is typed")
    parser.add_argument("--output", type=parsing.workdir, required=True, help="a new directory")
    starts = ("stepwise", "average", "first", "lower", "upper", "random")
    about = "layers that a shared entry is made of"
    parser.add_argument("--init", choices=starts, default="stepwise", help=about)
    parser.add_argument("--norms", choices=starts, help="the same for norms; default: --init")
    about = "of the adapters of each step: --config.weights.kind=lora --config.weights.rank"
    parser.add_argument("--lora_rank", type=parsing.integer(1), help=about)
    about = "adapters as near as they come to what sharing loses, or without effect at first"
    parser.add_argument("--lora_init", choices=("svd", "zero"), default="svd", help=about)
    about = "parameters that do not fit: an error, or new ones, in another architecture"
    parser.add_argument("--others", choices=("refuse", "new"), default="refuse", help=about)
    for old, new in (("--start", "--init"), ("--adapters", "--lora_init")):
        parser.add_argument(old, action=parsing.Renamed, new=new)
    arguments.seed_option(parser, "of what is drawn")
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Makes one model of another."""
    import jax

    from recursia import config
    from recursia.convert import fitting, recursive
    from recursia.workdir import trained

    fields = _fields(given)
    run = config.load(given.config, fields) if given.config else None
    with console.doing(f"loading {given.workdir}"):
        dense = trained.load(given.workdir, given.step)
        # One matrix after another: over several devices each would be a program of its own.
        params = jax.device_put(dense.params, jax.local_devices()[0])
    run = run or config.change(trained.settings_of(dense, given.workdir), fields)
    theirs, name = dense.model, given.config or "a model"
    places = tuple(str(buckets.path(path).resolve()) for path in dense.paths)
    if places:  # a checkpoint from elsewhere has none: the configuration's own data stays
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, path=places))
    try:
        ours = run.model.sized(theirs.vocab_size)
        how = {"norms": given.norms, "adapters": given.lora_init}
        key = jax.random.key(given.seed)
        with console.doing(f"making {name} of it"):
            if given.others == "new":
                weights, new = fitting.fitting(params, theirs, ours, given.init, key=key)
            else:
                weights = recursive.recursive(params, theirs, ours, given.init, **how, key=key)
                new = []
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None
    trained.save(run, theirs.vocab_size, weights, dense.tokenizer, given.output)
    for path in new:
        print(f"{path}: new")
    print(f"{given.output}: {name} made of {given.workdir} at step {dense.step}")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training(given.output, {"train.init_from": given.output})


def _fields(given: argparse.Namespace) -> dict[str, str]:
    """Returns the fields of the configuration that were typed, those of `--lora_rank` included."""
    typed = dict(given.overrides)
    if given.lora_rank is None:
        return typed
    for field in typed:
        if field.removeprefix("model.") in ("weights.kind", "weights", "weights.rank"):
            raise ConfigError(f"--lora_rank: is set by --config.{field} too; give one of the two")
    return {**typed, "weights.kind": "lora", "weights.rank": str(given.lora_rank)}
