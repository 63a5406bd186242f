"""Command-line options that several verbs share, and what completes their values."""

import argparse
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from recursia import parsing

if TYPE_CHECKING:  # jax is slow to import, and --help needs none of it
    from recursia.distributed import Flags

CONFIG = "FILE.py:PRESET, a shipped name such as mor:tiny, or a run's directory"
DEPTH = "Takes --config.depth.FIELD=VALUE, such as exit_threshold, besides."
SEEDS = 2**31 - 1


def config_option(parser: parsing.Parser, default: str | None = None) -> None:
    """Adds `--config` and lets `--config.a.b=value` be typed.

    Args:
      parser: to which it is added.
      default: what stands for a configuration that is not given, in words; None requires one.
    """
    text = f"{CONFIG}; then --config.a.b=value"
    text = text if default is None else f"{text}; default: {default}"
    how: dict[str, Any] = {"type": parsing.place, "required": default is None, "help": text}
    chosen: Any = parser.add_argument("--config", **how)
    chosen.completer = configs
    parser.set_defaults(takes_overrides=True)


def configs(prefix: str, **_: Any) -> Iterator[str]:
    """Completes a configuration: files first, then a file's presets."""
    from recursia import presets

    name, colon = prefix.partition(":")[:2]
    if colon:
        yield from presets.presets(name)
    else:
        from argcomplete import completers

        yield from (f"{name}:" for name in presets.every())
        yield from completers.FilesCompleter(("py",))(prefix)


def shipped(prefix: str, **_: Any) -> tuple[str, ...]:
    """Completes the name of a shipped configuration."""
    from recursia import presets

    return presets.shipped()


def run_options(parser: parsing.Parser) -> None:
    """Adds the options that choose a run's checkpoint."""
    about = "a run's directory, or its place in a bucket; a Hugging Face folder, .gguf or .bin"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    parser.add_argument("--step", type=parsing.integer(0), help="a checkpoint; default: the latest")


def json_option(parser: parsing.Parser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def seed_option(parser: parsing.Parser, of: str) -> None:
    """Adds `--seed`."""
    parser.add_argument("--seed", type=parsing.integer(0, SEEDS), default=0, help=of)


def compiling_option(parser: parsing.Parser) -> None:
    """Says that the verb compiles programs, and adds the option to keep none."""
    parser.set_defaults(compiles=True)
    about = "keep no compiled program for next time, and take none"
    parser.add_argument("--no_compilation_cache", action="store_true", help=about)


def process_options(parser: parsing.Parser) -> None:
    """Adds the options that join several processes."""
    about = "HOST:PORT of process 0 of several; default: as the environment says"
    parser.add_argument("--coordinator", help=about)
    about = "of the run; 1 by itself: no others; default: as the environment says"
    parser.add_argument("--num_processes", type=parsing.integer(1), help=about)
    about = "which of them this is, from 0; default: as the environment says"
    parser.add_argument("--process_id", type=parsing.integer(0), help=about)


def processes(given: argparse.Namespace) -> "Flags":
    """Returns what `process_options` read."""
    from recursia.distributed import Flags

    return Flags(given.coordinator, given.num_processes, given.process_id)


def command(
    verb: str, config: Any = None, overrides: Mapping[str, Any] | None = None, **options: Any
) -> str:
    """Returns a command as it is typed in a shell.

    Args:
      verb: its words.
      config: of `--config`; None gives none.
      overrides: of the configuration, as typed.
      options: their values by name.
    """
    of_config = {} if config is None else {"config": config}
    changes = {f"config.{field}": value for field, value in (overrides or {}).items()}
    words = [f"--{name}={value}" for name, value in {**of_config, **changes, **options}.items()]
    return " ".join(["recursia", verb, *map(shlex.quote, words)])


def training(config: Any, overrides: Mapping[str, Any] | None = None) -> str:
    """Returns the command that trains a configuration, in a directory that is yet to be named."""
    return command("train", config, overrides, workdir="runs/NAME")


def typed(given: argparse.Namespace) -> str:
    """Returns the configuration as it was typed."""
    from recursia import changes

    return " ".join(filter(None, [f"--config={given.config}", changes.typed(given.overrides)]))
