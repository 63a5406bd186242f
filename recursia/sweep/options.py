"""The options that choose what runs a sweep; its directory records them for the next time."""

import argparse
from collections.abc import Mapping
from typing import Any

from recursia import parsing
from recursia.errors import ConfigError
from recursia.launch import choice, machine_options

LOCAL, PRINT = "local", "print"
RUNNERS = (LOCAL, "slurm", "gke", PRINT)
# What is recorded, besides the settings of a target.
_RECORDED = ("runner", "threads", "gpus")
_RECORDED += ("topology", "image", "venv", "shared", "env", "restarts", "hours")


def add(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the sweep's directory, or its place in a bucket"
    parser.add_argument("--workdir", type=parsing.workdir, help=about)
    about = f"what runs the trials; default: {LOCAL}, or what ran this sweep before"
    parser.add_argument("--runner", choices=RUNNERS, help=about)
    about = "trials at a time on this machine, or workers of a search; default: one for each GPU, "
    about += "or as CPUs allow; a host with TPU chips runs one"
    parser.add_argument("--jobs", type=parsing.integer(1), help=about)
    about = "CPUs of each trial on this machine; default: they are divided"
    parser.add_argument("--threads", type=parsing.integer(1), help=about)
    about = "GPUs of each trial on this machine, which no other trial uses; default: those of "
    about += "CUDA_VISIBLE_DEVICES, or all, are divided; 0: every trial uses all"
    parser.add_argument("--gpus", type=parsing.integer(0), help=about)
    about = "run trials that failed once more"
    parser.add_argument("--retry_failed", action="store_true", help=about)
    about = "print what would be run or sent, and write nothing"
    parser.add_argument("--dry_run", action="store_true", help=about)
    machine_options.options(parser)


def need(given: argparse.Namespace, *names: str) -> None:
    """Checks that options were typed, which are no required ones of a verb that others follow.

    Raises:
      ConfigError: for the first that was not.
    """
    for name in names:
        if getattr(given, name) is None:
            raise ConfigError(f"sweep: give --{name}=...; see recursia sweep --help")


def how(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the options to record."""
    typed = {name: getattr(given, name) for name in _names()}
    return {name: value for name, value in typed.items() if value not in (None, ())}


def remember(given: argparse.Namespace, recorded: Mapping[str, Any]) -> None:
    """Sets options that were not typed to what is recorded.

    Raises:
      ConfigError: if what is recorded cannot be typed.
    """
    is_other = given.runner is not None and given.runner != recorded.get("runner")
    before = _read(given, recorded)
    for name in _names():
        if getattr(given, name) in (None, ()) and not (is_other and name.startswith("target.")):
            setattr(given, name, getattr(before, name))
    given.runner = given.runner or LOCAL


def _read(given: argparse.Namespace, recorded: Mapping[str, Any]) -> argparse.Namespace:
    """Returns recorded options as if they were typed."""
    parser = parsing.Parser(prog="recursia sweep")
    add(parser)
    words = []
    for name in (name for name in _names() if name in recorded):
        value = recorded[name]
        if isinstance(value, list) and name != "env":
            value = ",".join(map(str, value))
        words += [f"--{name}={each}" for each in (value if isinstance(value, list) else [value])]
    try:
        return parser.parse_args(words)
    except ConfigError as error:
        raise ConfigError(f"--workdir={given.workdir}: what it records: {error}") from None


def _names() -> list[str]:
    return [*_RECORDED, *(f"target.{name}" for name in choice.settings())]
