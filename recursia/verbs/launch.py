"""`recursia launch`: starts a run on machines, or prints what would be sent."""

import argparse
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recursia import arguments, parsing
from recursia.errors import ConfigError
from recursia.launch import choice, machines
from recursia.launch.job import RESTARTS, Job
from recursia.launch.targets.target import Target

if TYPE_CHECKING:
    from recursia import settings

ABOUT = "Train on this machine, a cluster or a cloud; --dry_run prints what would be sent."
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
# Of the memory of a GPU: what preflight counts on, where jax takes 3/4 by itself.
MEMORY = {"XLA_CLIENT_MEM_FRACTION": "0.9"}


def options(parser: parsing.Parser) -> None:
    """Adds the options, with the settings of every target."""
    about = f"what starts the run: {', '.join(choice.titles())}"
    chosen: Any = parser.add_argument("--target", required=True, help=about)
    chosen.completer = choice.titles
    arguments.config_option(parser)
    about = "the run's directory: in a bucket, or in a folder that all hosts share"
    parser.add_argument("--workdir", type=parsing.place, required=True, help=about)
    parser.add_argument("--dry_run", action="store_true", help="print what would be sent, and stop")
    about = f"{machines.FORMS}; default: the configuration's"
    parser.add_argument("--topology", help=about)
    parser.add_argument("--name", help="of the job; default: the last part of --workdir")
    parser.add_argument("--image", help="container image that has recursia")
    about = "folder of a Python environment that has recursia, on the hosts"
    parser.add_argument("--venv", type=parsing.place, help=about)
    about = "folders that all hosts see under the same name, by commas"
    parser.add_argument("--shared", type=parsing.names, default=(), help=about)
    about = "an environment variable of the run; may be repeated"
    parser.add_argument(
        "--env", action="add", nargs=1, default=(), metavar="NAME=VALUE", help=about
    )
    about = f"starts after a stop, at most; default: {RESTARTS}"
    parser.add_argument("--restarts", type=parsing.integer(0), help=about)
    parser.add_argument("--hours", type=parsing.real(0.02), help="time limit; default: none")
    about = "do not check, by compiling, that a step fits the chips"
    parser.add_argument("--no_preflight", action="store_true", help=about)
    for name, (meaning, titles) in choice.settings().items():
        about = f"{meaning} ({', '.join(titles)})".replace("%", "%%")
        parser.add_argument(f"--target.{name}", metavar="VALUE", help=about)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int | None:
    """Checks a job, and submits it or prints what would be submitted."""
    _check_lines(given)
    typed = {name: getattr(given, f"target.{name}") for name in choice.settings()}
    typed = {name: value for name, value in typed.items() if value is not None}
    target = choice.read(given.target, typed)
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
        file = _file(given.config)[0]
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
    return target.submit(job)


def _check_lines(given: argparse.Namespace) -> None:
    """Checks that everything that was typed is text of one line, which scripts can hold."""
    overrides = {f"config.{name}": value for name, value in given.overrides.items()}
    for name, value in {**vars(given), **overrides}.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise ConfigError(f"--{name}: takes one line of printable text, got {text!r}")


def _job(
    given: argparse.Namespace, target: Target, run: "settings.Run", where: machines.Machines
) -> Job:
    """Returns the job as typed, with places that mean the same on every host."""
    place = lambda text: text if "://" in text or not text else os.path.abspath(text)
    file, preset = _file(given.config)
    config = place(file) + preset if file and not target.IS_HERE else given.config
    workdir = given.workdir if target.IS_HERE else place(given.workdir)
    overrides = given.overrides if target.IS_HERE else _absolute(run, given.overrides)
    changes = [f"--config.{field}={value}" for field, value in overrides.items()]
    command = ("train", f"--config={config}", *changes, f"--workdir={workdir}")
    _check_command(command)
    name = given.name or os.path.basename(given.workdir.rstrip("/")) or "run"
    return Job(
        name=name,
        commands=(command,),
        machines=where,
        environment={**(MEMORY if where.is_gpu else {}), **_environment(given.env)},
        image=given.image or "",
        venv=place(given.venv or ""),
        shared=tuple(map(os.path.abspath, given.shared)),
        restarts=given.restarts,
        seconds=round(3600 * (given.hours or 0)),
    )


def _file(config: str) -> tuple[str, str]:
    """Returns the file that `--config` names, "" for a shipped one, and ":PRESET"."""
    match = re.fullmatch(r"(.*\.py)(:.*)?", config, re.DOTALL)
    return (match[1], match[2] or "") if match else ("", "")


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


def _environment(typed: tuple[str, ...]) -> dict[str, str]:
    """Returns environment variables from NAME=VALUE."""
    found: dict[str, str] = {}
    for item in typed:
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch(VARIABLE, name):
            raise ConfigError(f"--env={item}: takes NAME=VALUE, with a name such as XLA_FLAGS")
        if found.setdefault(name, value) != value:
            raise ConfigError(f"--env={name}: given as {found[name]} and as {value}; give one")
    return found
