"""`recursia train`: pretrains a model; the same command again resumes."""

import argparse

from recursia import arguments, parsing, streams
from recursia.errors import ConfigError

ABOUT = "Pretrain; the same command again resumes."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser)
    parser.add_argument("--workdir", type=parsing.workdir, help="the run's directory")
    about = "begin at step 0 if all saved steps are lost; the old files are moved aside"
    parser.add_argument("--restart", action="store_true", help=about)
    parser.add_argument("--dry_run", action="store_true", help="print what it would cost, and stop")
    arguments.compiling_option(parser)
    arguments.process_options(parser)


def run(given: argparse.Namespace) -> None:
    """Trains, or says what that would cost."""
    from recursia import config, distributed
    from recursia.train import loop

    run = config.load(given.config, given.overrides)
    if given.dry_run:
        from recursia import budget

        print(budget.render(budget.compare({given.config: run}, "none")))
        return
    if given.workdir is None:
        raise ConfigError("train: give --workdir=DIR, or --dry_run to see what it would cost")
    streams.print_nothing_of_note()
    flags = arguments.processes(given)
    with distributed.joined(flags, is_preemptible=True, stacks=given.workdir):
        loop.train(run, given.workdir, given.overrides, given.config, given.restart)
        given.is_silent = not distributed.is_first()


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    if given.dry_run:
        return arguments.training(given.config, given.overrides)
    return arguments.command("report", workdir=given.workdir)
