"""Writes docs/commands.md: every command with its options, as its parser has them.

python -m docs.commands
"""

import argparse
import pathlib

from recursia import parsing, verbs

PAGE = pathlib.Path(__file__).with_name("commands.md")
INTRODUCTION = """# Commands

Every command of `recursia` with its options. The page is written by `python -m docs.commands` from
the parsers of the commands; `recursia VERB --help` prints the same. [Usage](usage.md) shows them at
work. An option in brackets may be left out. An option with `...` may be given again and adds to the
first; any other is refused if it is given twice with two values.

"""
OVERRIDES = (
    "`--config.FIELD=VALUE ...`",
    "any field of a [configuration](configs.md), such as `--config.train.num_steps=100`",
)


def page() -> str:
    """Returns the page."""
    sections = [_section(words, verb) for words, verb in verbs.VERBS.items()]
    listed = "".join(f"| [`recursia {words}`](#{_anchor(words)}) | {verb.ABOUT} |\n"
                     for words, verb in verbs.VERBS.items())  # fmt: skip
    return INTRODUCTION + "| command | what it does |\n|---|---|\n" + listed + "".join(sections)


def _anchor(words: str) -> str:
    return f"recursia-{words.replace(' ', '-')}"


def _section(words: str, verb: verbs.Verb) -> str:
    parser = parsing.Parser(prog=f"recursia {words}")
    verb.options(parser)
    shown = [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    rows = [(_typed(action), _meaning(parser, action)) for action in shown]
    rows += [OVERRIDES] if parser.get_default("takes_overrides") else []
    table = "".join(f"| {typed} | {meaning} |\n" for typed, meaning in rows)
    table = f"| option | meaning |\n|---|---|\n{table}" if rows else ""
    return f"\n## `recursia {words}`\n\n{verb.ABOUT}\n\n{table}"


def _typed(action: argparse.Action) -> str:
    """Returns an option as it is typed, in brackets if it may be left out."""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = "|".join(map(str, action.choices)) if action.choices else str(name)
    flags = action.option_strings
    typed = flags[-1] if flags and action.nargs == 0 else f"{flags[-1]}={value}" if flags else value
    again = isinstance(action, parsing.Add) or action.nargs == "+"
    typed = f"{typed} ..." if again else typed
    is_needed = action.required and action.nargs != "?"
    return f"`{typed if is_needed else f'[{typed}]'}`".replace("|", "\\|")


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser.formatter_class(parser.prog)
    return formatter._expand_help(action).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
