"""What is typed of a job's machines, and of the engine that starts it."""

import argparse
import os
import re

from recursia import parsing
from recursia.errors import ConfigError
from recursia.launch import choice, machines
from recursia.launch.job import RESTARTS, Job
from recursia.launch.targets.target import Target

VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
# Of the memory of a GPU: what preflight counts on, where jax takes 3/4 by itself.
MEMORY = {"XLA_CLIENT_MEM_FRACTION": "0.9"}
MOST_RESTARTS = 2**31 - 1  # which shells and Kubernetes count to
MOST_HOURS = 8760  # a year


def options(parser: parsing.Parser) -> None:
    """Adds the options, with the settings of every target."""
    about = f"{machines.FORMS}; default: the configuration's"
    parser.add_argument("--topology", type=parsing.something, help=about)
    about = "container image that has recursia"
    parser.add_argument("--image", type=parsing.something, help=about)
    about = "folder of a Python environment that has recursia, on the hosts"
    parser.add_argument("--venv", type=_folder, help=about)
    about = "folders that all hosts see under the same name, by commas"
    parser.add_argument("--shared", type=_folders, default=(), help=about)
    about = "an environment variable of the run; may be repeated"
    parser.add_argument(
        "--env", action="add", nargs=1, default=(), metavar="NAME=VALUE", help=about
    )
    about = f"starts after a stop, at most; default: {RESTARTS}"
    parser.add_argument("--restarts", type=parsing.integer(0, MOST_RESTARTS), help=about)
    about = "time limit of a start, at which the run is saved and starts again; default: none"
    parser.add_argument("--hours", type=parsing.real(0.02, MOST_HOURS), help=about)
    for name, (meaning, titles) in choice.settings().items():
        about = f"{meaning} ({', '.join(titles)})".replace("%", "%%")
        parser.add_argument(f"--target.{name}", metavar="VALUE", help=about)


def target(title: str, given: argparse.Namespace) -> Target:
    """Returns a target with its settings as typed; raises what `choice.read` raises."""
    typed = {name: getattr(given, f"target.{name}") for name in choice.settings()}
    return choice.read(title, {name: value for name, value in typed.items() if value is not None})


def job(
    given: argparse.Namespace,
    name: str,
    commands: tuple[tuple[str, ...], ...],
    where: machines.Machines,
) -> Job:
    """Returns a job as typed; raises ConfigError for a wrong variable."""
    return Job(
        name=name,
        commands=commands,
        machines=where,
        environment={**(MEMORY if where.is_gpu else {}), **_environment(given.env)},
        image=given.image or "",
        venv=place(given.venv or ""),
        shared=tuple(map(os.path.abspath, given.shared)),
        restarts=given.restarts,
        seconds=round(3600 * (given.hours or 0)),
    )


def _folder(typed: str) -> str:
    return str(parsing.path(typed))


def _folders(typed: str) -> tuple[str, ...]:
    if not (found := tuple(_folder(each) for each in typed.split(",") if each)):
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes folders, by commas")
    return found


def place(text: str) -> str:
    """Returns a place that means the same in every folder."""
    return text if "://" in text or not text else os.path.abspath(text)


def file(name: str) -> tuple[str, str]:
    """Returns the file or the run that `--config` names, "" for a shipped one, and ":PRESET"."""
    from recursia import config

    if config.is_run(name):
        return name, ""
    match = re.fullmatch(r"(.*\.py)(:.*)?", name, re.DOTALL)
    return (match[1], match[2] or "") if match else ("", "")


def check_lines(given: argparse.Namespace) -> None:
    """Checks that everything that was typed is text of one line, which scripts can hold."""
    overrides = {f"config.{name}": value for name, value in given.overrides.items()}
    for name, value in {**vars(given), **overrides}.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise ConfigError(f"--{name}: takes one line of printable text, got {text!r}")


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
