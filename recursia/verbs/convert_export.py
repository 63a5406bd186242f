"""`recursia convert export`: writes a run as a Hugging Face folder."""

import argparse

from recursia import arguments, console, parsing
from recursia.convert import formats

ABOUT = "Write a run as a Hugging Face folder, with its own code or as a family unrolled."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    parser.add_argument("--output", type=parsing.path, required=True, help="a new directory")
    about = "recursive: as it is, with a modelling file; a family: unrolled, in its layout"
    parser.add_argument("--format", choices=formats.FORMATS, default="recursive", help=about)


def run(given: argparse.Namespace) -> None:
    """Writes a run as a Hugging Face folder."""
    from recursia.convert import export
    from recursia.safely import new_folder
    from recursia.workdir import trained

    with new_folder(given.output) as part:
        with console.doing(f"loading {given.workdir}"):
            ours = trained.load(given.workdir, given.step)
        length = max(ours.run.train.seq_len, 1)
        export.export(ours.model, ours.params, ours.tokenizer, given.format, length, part)
    print(f"{given.output}: {given.workdir} at step {ours.step}, as {given.format}")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("eval", workdir=given.output, text="FILE")
