"""`recursia compile`: compiles a training step for a TPU slice or GPU node."""

import argparse
import json

from recursia import arguments, console, parsing, safely
from recursia.errors import ConfigError

ABOUT = "Compile the training step for a TPU slice or GPU node: does it fit, what does it move."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser)
    about = "v4, v5e, v5p or v6e and a slice (v5e:16x16), or GPUs (h100:8, h100:8x4)"
    parser.add_argument("--topology", help=f"{about}; default: the configuration's")
    parser.add_argument("--decode", action="store_true", help="and the drawing of a token")
    about = "change rematerialisation, microbatches, then meshes until it fits"
    parser.add_argument("--search", action="store_true", help=about)
    about = "programs that a search compiles at most; default: 8"
    parser.add_argument("--tries", type=parsing.integer(1), help=about)
    parser.add_argument("--output", type=parsing.path, help="a file for the JSON object")
    arguments.json_option(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int:
    """Prints what a step would cost on a machine that is not here; returns 1 if it does not fit."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the machine meant is not this one
    from recursia import compiled, config, topology
    from recursia.preflight import kept, ladder, render, report

    run = config.load(given.config, given.overrides)
    name = given.topology or run.topology
    if not name:
        raise ConfigError(
            f"compile: {given.config} names no topology; give one, such as --topology=v5e:16x16"
        )
    if given.decode and given.search:
        raise ConfigError("--decode: a search compiles training steps; give one of the two")
    if given.tries and not given.search:
        raise ConfigError(f"--tries={given.tries}: programs of a search; give --search")
    if given.output and not given.output.parent.is_dir():
        raise ConfigError(f"--output={given.output}: no folder {given.output.parent}; make it")
    if given.output and given.output.is_dir():
        raise ConfigError(f"--output={given.output}: is a folder; give a file in it")
    devices = topology.devices(name)
    if given.search:
        tries = given.tries or ladder.TRIES
        found = ladder.climb(run, name, devices, tries, console.say, compiled.where())
        result, shown = {**found[-1], "search": found}, render.table(found)
    else:
        with console.doing(f"compiling {given.config} for {name}"):
            result = report.examine(run, name, devices, with_decode=given.decode)
        kept.write(result, run, name, compiled.where())
        if not result["fits"]:
            result["advice"] = ladder.advice(run, devices)
        shown = render.full(arguments.typed(given), result)
    if given.output:
        with safely.file(given.output, "output") as part:
            part.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if given.json else shown)
    return 0 if result["fits"] else 1


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    topology = {"topology": given.topology} if given.topology else {}
    where = {"target": "NAME", **topology, "workdir": "s3://BUCKET/NAME"}
    return arguments.command("launch", given.config, given.overrides, **where) + " --dry_run"
