"""The verbs of `recursia`, one file each: a line for `--help`, the options, and what it does."""

import argparse
from typing import Protocol

from recursia import parsing
from recursia.verbs import (
    budget,
    ckpt_ls,
    ckpt_verify,
    compile,
    convert_export,
    convert_fold,
    convert_huggingface,
    convert_recursive,
    coordinates,
    data_facts,
    data_inspect,
    data_prepare,
    data_tasks,
    doctor,
    eval,
    fields,
    generate,
    launch,
    laws,
    parity,
    presets,
    replay,
    report,
    sweep,
    sweep_report,
    sweep_results,
    sweep_resume,
    sweep_status,
    train,
)


class Verb(Protocol):
    """What the file of a verb defines."""

    @property
    def ABOUT(self) -> str:
        """One line for `--help`."""
        ...

    @staticmethod
    def options(parser: parsing.Parser) -> None:
        """Adds the options of the verb to its parser."""

    @staticmethod
    def run(given: argparse.Namespace) -> int | None:
        """Does what was asked; returns the exit code, where None is 0."""

    @staticmethod
    def following(given: argparse.Namespace) -> str:
        """Returns the command that comes next; names in capitals are for the user to replace."""
        ...


GROUPS = {
    "ckpt": "Look at a run's checkpoints.",
    "convert": "Make one model of another.",
    "data": "Prepare and look at data.",
}
VERBS: dict[str, Verb] = {
    "train": train,
    "eval": eval,
    "generate": generate,
    "report": report,
    "budget": budget,
    "coordinates": coordinates,
    "compile": compile,
    "launch": launch,
    "sweep": sweep,
    "sweep status": sweep_status,
    "sweep resume": sweep_resume,
    "sweep results": sweep_results,
    "sweep report": sweep_report,
    "doctor": doctor,
    "parity": parity,
    "laws": laws,
    "replay": replay,
    "ckpt ls": ckpt_ls,
    "ckpt verify": ckpt_verify,
    "convert recursive": convert_recursive,
    "convert fold": convert_fold,
    "convert huggingface": convert_huggingface,
    "convert export": convert_export,
    "data prepare": data_prepare,
    "data inspect": data_inspect,
    "data tasks": data_tasks,
    "data facts": data_facts,
    "presets": presets,
    "fields": fields,
}
