"""The command line: `recursia VERB`. It reads what was typed, calls a verb, and ends as it should.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or configuration, 3 data, 4 diverged,
5 checkpoint, 6 storage, 7 another process is lost, 75 stopped with nothing lost, 130 Ctrl-C,
141 nobody reads what is printed.
"""

import argparse
import dataclasses
import glob
import importlib
import importlib.metadata
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from recursia import compiled, console, parsing, signals, verbs
from recursia.errors import CheckFailed, ConfigError, OutputLost, StorageError, UserError

_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def main(given: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A user's mistake is one line on standard error.

    Args:
      given: the arguments; None for those of this process.
    """
    try:
        code = _command(list(sys.argv[1:] if given is None else given))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OutputLost as error:
        if not error.is_closed:
            console.say(f"recursia: {error}")
        return error.exit_code
    except (UserError, signals.Left) as error:
        console.say(f"recursia: {error}")
        return error.exit_code
    except SystemExit as error:  # argparse: --help, or a wrong option
        return int(error.code or 0)


def command(line: str) -> None:
    """Runs `recursia LINE` in this process, as one types it in a notebook.

    Args:
      line: what follows `recursia`, quoted as in a shell.

    Raises:
      UserError: whose message, of one line, the command would have ended with.

    Example:
      >>> import recursia
      >>> recursia.command("train --config=mor:tiny --workdir=runs/tiny --config.train.num_steps=1")
    """
    try:
        given = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{line}: {error}; close the quotation") from None
    try:
        code = _command(given)
    except SystemExit as error:  # argparse: --help
        code = int(error.code or 0)
    if code:
        raise CheckFailed(f"recursia {line}: ended with {code}; the lines above say why")


def _command(given: list[str]) -> int:
    root = parser()
    _complete(root)
    rest, overrides = parsing.split(given)
    options = root.parse_args(rest)
    if overrides and not options.takes_overrides:
        raise ConfigError(f"{options.verb}: takes no --config; remove it")
    options.overrides = overrides
    _quiet()
    if options.compiles:
        compiled.use(is_on=not options.no_compilation_cache)
    if options.compiles and console.is_live():
        with console.doing("starting"):
            importlib.import_module("jax")
    try:
        code = options.run(options) or 0
    except PermissionError as error:
        if error.filename is None:
            raise
        raise StorageError(
            f"{error.filename}: {error.strerror}; give a place that is yours"
        ) from None
    if not code and not options.is_silent and not getattr(options, "json", False):
        if sys.stdout is not None:
            sys.stdout.flush()
        console.say(f"next: {options.following(options)}")
    return code


def parser() -> parsing.Parser:
    """Returns the parser of the command line."""
    about = "Pretrain language models whose depth is made by using the same weights again."
    root = parsing.Parser(prog="recursia", description=about)
    root.add_argument("--version", action=_Version, help="versions of recursia, jax and Python")
    commands = {"": root.add_subparsers(dest="verb", required=True, metavar="VERB")}
    made: dict[str, parsing.Parser] = {}
    for words, verb in verbs.VERBS.items():
        group, _, name = words.rpartition(" ")
        if group not in commands:
            if not (is_verb := group in made):  # of its own, such as `sweep`
                about = verbs.GROUPS[group]
                made[group] = commands[""].add_parser(group, help=about, description=about)
            names = "|".join(
                each.split()[1] for each in verbs.VERBS if each.startswith(f"{group} ")
            )
            how = {"dest": f"{group}_verb", "required": not is_verb, "metavar": names}
            commands[group] = made[group].add_subparsers(**how)
        command = commands[group].add_parser(name, help=verb.ABOUT, description=verb.ABOUT)
        command.set_defaults(run=verb.run, following=verb.following, is_silent=False)
        command.set_defaults(takes_overrides=False, compiles=False)
        verb.options(command)
        made[words] = command
    return root


def _complete(parser: parsing.Parser) -> None:
    """Answers a shell that asks for completions, and ends; does nothing else."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete
        from argcomplete.finders import safe_actions

        safe_actions.update((parsing.Once, parsing.Add))
        argcomplete.autocomplete(parser)


class _Version(argparse.Action):
    """Prints versions and ends."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        of = {name: importlib.metadata.version(name) for name in ("recursia", "jax", "jaxlib")}
        print(", ".join(f"{n} {v}" for n, v in {**of, "Python": platform.python_version()}.items()))
        parser.exit()


def _quiet() -> None:
    """Keeps libraries' chatter off a user's terminal."""
    import logging

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised too
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's warnings
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    if not isinstance(sys.unraisablehook, _Unheard):
        sys.unraisablehook = _Unheard(sys.unraisablehook)
    # Where compilers for TPU or GPU are installed, jax looks for the devices, in vain and aloud.
    here = (path for pattern in _ACCELERATORS for path in glob.iglob(pattern))
    if sys.platform == "linux" and not any(here):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


@dataclasses.dataclass(frozen=True)
class _Unheard:
    """Says nothing of the arrays of a save that come after it has failed, which is said already."""

    before: Callable[[Any], Any]

    def __call__(self, raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            self.before(raised)
