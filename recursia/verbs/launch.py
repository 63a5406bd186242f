"""`recursia launch`: starts a run on machines, or prints what would be sent."""

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recursia import arguments, parsing
from recursia.errors import ConfigError
from recursia.launch import choice, machine_options, machines
from recursia.launch.job import Job
from recursia.launch.targets.target import Target

if TYPE_CHECKING:
    from recursia import settings

ABOUT = "Train on this machine, a cluster or a cloud; --dry_run prints what would be sent."


def options(parser: parsing.Parser) -> None:
    """Adds the options, with the settings of every target."""
    about = f"what starts the run: {', '.join(choice.titles())}"
    chosen: Any = parser.add_argument("--target", required=True, help=about)
    chosen.completer = choice.titles
    arguments.config_option(parser)
    about = "the run's directory: in a bucket, or in a folder that all hosts share"
    place = lambda typed: str(parsing.workdir(typed))
    parser.add_argument("--workdir", type=place, required=True, help=about)
    parser.add_argument("--dry_run", action="store_true", help="print what would be sent, and stop")
    about = "of the job; default: the last part of --workdir"
    parser.add_argument("--name", type=parsing.something, help=about)
    machine_options.options(parser)
    about = "do not check, by compiling, that a step fits the chips"
    parser.add_argument("--no_preflight", action="store_true", help=about)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int | None:
    """Checks a job, and submits it or prints what would be submitted."""
    machine_options.check_lines(given)
    target = machine_options.target(given.target, given)
    from recursia import config
    from recursia.launch import checks

    run = config.load(given.config, given.overrides)
    topology = given.topology or ("" if target.IS_HERE else run.topology)
    where = machines.read(topology) if topology else machines.HERE
    job = _job(given, target, run, where)
    target.check(job)
    if target.IS_HERE and job.shared:
        raise ConfigError(f"--shared={','.join(job.shared)}: {target.title()} is this machine")
    if not target.IS_HERE:
        venv = job.venv if job.shared else ""  # else in the system of the hosts
        file = machine_options.file(given.config)[0]
        checks.check_places(
            run, target.title(), job.shared, workdir=given.workdir, config=file, venv=venv
        )
    if where.per_host:
        checks.check_mesh(run, where)
    if where.per_host and not given.no_preflight:
        checks.check_fit(run, given.config, where, may_compile=not given.dry_run)
    if given.dry_run:
        print(target.script(job), end="")
        return 0
    given.is_silent = target.IS_HERE  # the run itself has said it
    return target.submit(job)


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    if given.dry_run:
        return "the same without --dry_run"
    out: dict[str, Any] = {"out": "report.html"} if "://" in given.workdir else {}
    return arguments.command("report", workdir=given.workdir, **out)


def _job(
    given: argparse.Namespace, target: Target, run: "settings.Run", where: machines.Machines
) -> Job:
    """Returns the job as typed, with places that mean the same on every host."""
    file, preset = machine_options.file(given.config)
    config = machine_options.place(file) + preset if file and not target.IS_HERE else given.config
    workdir = given.workdir if target.IS_HERE else machine_options.place(given.workdir)
    overrides = given.overrides if target.IS_HERE else _absolute(run, given.overrides)
    changes = [f"--config.{field}={value}" for field, value in overrides.items()]
    command = ("train", f"--config={config}", *changes, f"--workdir={workdir}")
    _check_command(command)
    name = given.name or os.path.basename(given.workdir.rstrip("/")) or "run"
    return machine_options.job(given, name, (command,), where)


def _absolute(run: "settings.Run", overrides: Mapping[str, str]) -> dict[str, str]:
    """Returns overrides with the files and folders among them as the run names them."""
    from recursia import config, fields

    found = dict(overrides)
    for name in overrides:
        value: Any = config.to_dict(run)
        for part in fields.full(name).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list | tuple) and any(map(_is_absolute, values)):
            found[name] = ",".join(values)
    return found


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


def _check_command(command: tuple[str, ...]) -> None:
    """Checks that `recursia train` takes a command."""
    from recursia.verbs import train

    parser = parsing.Parser(prog="recursia train")
    train.options(parser)
    rest, _ = parsing.split(command[1:])
    parser.parse_args(rest)
