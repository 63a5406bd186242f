"""`recursia report`: shows a run as one HTML page."""

import argparse
import pathlib

from recursia import arguments, console, parsing
from recursia.errors import ConfigError

_DEFAULT = "report.html"
ABOUT = "Show what a run did and learned, as one HTML page; compare it with others."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "the run's directory, or its place in a bucket"
    parser.add_argument("--workdir", type=parsing.workdir, required=True, help=about)
    about = "another run's directory, whose curves are drawn too; may be repeated"
    parser.add_argument("--compare", type=parsing.workdir, action="append", default=[], help=about)
    about = f"the page, an .html that is replaced; default: {_DEFAULT} of the workdir"
    parser.add_argument("--out", type=parsing.path, help=about)
    about = "write it again while the run goes on, and serve it on 127.0.0.1"
    parser.add_argument("--watch", action="store_true", help=about)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Writes the page, and says where it is."""
    out = _out(given)
    try:
        import bokeh  # noqa: F401 - the package that may be missing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"report: needs bokeh ({error}); pip install 'recursia[report]'"
        ) from None
    from recursia.report import serving

    report = serving.Report([given.workdir, *given.compare], out)
    if given.watch:
        serving.watch(report, lambda line: print(line, flush=True))
    else:
        report.write()
    console.flush()
    print(f"{out}: written; open it in a browser")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("eval", workdir=given.workdir)


def _out(given: argparse.Namespace) -> pathlib.Path:
    """Returns the file to write; refuses one that cannot be."""
    from recursia import buckets

    if given.out is None and buckets.is_place(given.workdir):
        raise ConfigError(f"--workdir={given.workdir}: is in a bucket; give --out=FILE.html here")
    out = given.out or given.workdir / _DEFAULT
    if out.suffix != ".html":
        raise ConfigError(f"--out={out}: does not end in .html")
    if given.out is None and not given.workdir.is_dir():
        raise ConfigError(f"--workdir={given.workdir}: is not there; give a run's directory")
    if out.is_dir() or not out.parent.is_dir():
        why = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ConfigError(f"--out={out}: {why}; give another file")
    return out
