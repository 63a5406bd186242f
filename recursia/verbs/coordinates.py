"""`recursia coordinates`: whether activations, and their changes, grow with a model's size."""

import argparse
import json
import pathlib
from typing import Any

from recursia import arguments, console, parsing, safely
from recursia.errors import ConfigError

ABOUT = "Coordinate checks: do activations, and what steps change of them, grow with size."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.config_option(parser)
    about = "widths to compare, by commas; hidden widths and numbers of heads grow too"
    parser.add_argument("--widths", type=parsing.depths, help=about)
    about = "numbers of recursions to compare, by commas"
    parser.add_argument("--recursions", type=parsing.depths, help=about)
    about = "training steps, on one batch of random tokens"
    parser.add_argument("--num_steps", type=parsing.integer(1), default=8, help=about)
    about = "and of the same models with parameterisation.kind 'standard'"
    parser.add_argument("--standard", action="store_true", help=about)
    about = "a new .png, .svg or .pdf; needs recursia[plot]"
    parser.add_argument("--picture", type=parsing.picture, help=about)
    arguments.json_option(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints, and draws, mean sizes by place and size, and the powers with which they grow."""
    if bool(given.widths) == bool(given.recursions):
        raise ConfigError("coordinates: give sizes, two or more: --widths=A,B or --recursions=A,B")
    axis, sizes = ("width", given.widths) if given.widths else ("recursions", given.recursions)
    if len(sizes) < 2:
        raise ConfigError(f"coordinates: got one size, {sizes[0]}, and compares at least two")
    draw = _picture(given.picture)
    from recursia import config, coordinates, kinds
    from recursia.parameterisations.standard import Standard

    run = config.load(given.config, given.overrides)
    models = {kinds.kind_of(run.model.parameterisation): run.model}
    if given.standard:
        import dataclasses

        models["standard"] = dataclasses.replace(run.model, parameterisation=Standard())
    found: dict[str, Any] = {}
    for kind, model in models.items():
        with console.doing(f"taking steps with parameterisation {kind!r}"):
            points = coordinates.along(model, run.optimizer, axis, sizes, given.num_steps)
        places = points[sizes[0]]
        powers = {place: coordinates.growth(points, place) for place in places}
        found[kind] = {"points": points, "growth": powers}
    if given.json:
        print(json.dumps({"axis": axis, "num_steps": given.num_steps, "kinds": found}))
    else:
        print(_table(axis, found))
    draw(axis, found)


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training(given.config, given.overrides)


def _table(axis: str, found: dict[str, Any]) -> str:
    lines = []
    for kind, result in found.items():
        sizes = list(result["points"])
        heads = "".join(f"{size:>11}" for size in sizes)
        lines.append(f"{kind}: mean entry{'':<13}{axis:>12}{heads}   grows as")
        for index, what in enumerate(("at first", "moved by steps")):
            for place, powers in result["growth"].items():
                row = "".join(f"{result['points'][n][place][index]:>11.3g}" for n in sizes)
                lines.append(f"  {place:<16}{what:<18}{'':<12}{row}   {axis}^{powers[index]:+.2f}")
    return "\n".join(lines)


def _picture(path: pathlib.Path | None) -> Any:
    """Returns what draws the result, or does nothing where no picture was asked for."""
    if path is None:
        return lambda axis, found: None
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--picture: needs matplotlib ({error}); pip install 'recursia[plot]'"
        ) from None

    def draw(axis: str, found: dict[str, Any]) -> None:
        figure = Figure(figsize=(8.8, 4.2), layout="constrained")
        titles = ("mean entry at first", "mean change by the steps")
        for index, title in enumerate(titles):
            axes = figure.add_subplot(1, 2, index + 1)
            for style, (kind, result) in zip(("o-", "s--"), found.items(), strict=False):
                points = result["points"]
                for color, place in enumerate(result["growth"]):
                    values = [points[size][place][index] for size in points]
                    label = f"{place}, {kind}"
                    axes.plot(list(points), values, style, color=f"C{color}", ms=4, label=label)
            axes.set(title=title, xlabel=axis, xscale="log", yscale="log")
            axes.set_xticks(list(next(iter(found.values()))["points"]))
            axes.set_xticklabels(list(next(iter(found.values()))["points"]))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        with safely.file(path, "picture") as part:
            figure.savefig(part, dpi=110)

    return draw
