r"""Loss against size at equal training FLOPs on a CPU: what the shipped sweep found.

Reads the directory of the sweep and writes its report as a JSON file, tables of the page and the
picture.

  recursia sweep --config=sweeps/iso_flop:tiny --workdir=runs/iso_flop
  python benchmarks/iso_flop.py --workdir=runs/iso_flop \
    --out=benchmarks/results/iso_flop_cpu.json --page=docs/sweeps.md --picture=docs/iso_flop.png
"""

import argparse
import json
import math
import pathlib
import platform
import statistics
from typing import Any

import jax

from recursia.sweep import picture, report, results

COMMAND = "recursia sweep --config=sweeps/iso_flop:tiny --workdir=runs/iso_flop"
START, END = "<!-- table -->\n", "<!-- end -->"
TITLE = "bytes of the bundled novels, three seeds; stars: least losses, with 95 % intervals"


def measure(workdir: pathlib.Path) -> tuple[report.Report, dict[str, Any]]:
    """Returns the report of the sweep, and what is kept of it."""
    found = results.read(workdir)
    made = report.of(found)
    gaps = [
        each.metrics["validation_loss_causal"] - each.metrics["validation_loss"]
        for each in found
        if "validation_loss_causal" in each.metrics
    ]
    kept = {
        "command": COMMAND,
        "device": jax.default_backend(),
        "cpu": platform.machine(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "causal_gap": {"mean": statistics.fmean(gaps), "most": max(gaps, key=abs)},
    }
    return made, {**kept, **report.to_json(made)}


def table(found: dict[str, Any]) -> str:
    """Returns the minima and the power laws as Markdown tables."""
    names = "system | training FLOPs | trials | best size | least loss | residuals | lowest trial"
    lines = [f"| {names} |", "|---|---|---|---|---|---|---|"]
    for family in found["families"]:
        for valley in family["valleys"]:
            place, lowest = f"{valley['at']:.2g}", f"{valley['lowest']:.3f}"
            lines.append(f"| {family['name']} | {place} | {_minimum(valley)} | {lowest} |")
    lines += ["", "| system | b of L ~ C^-b | m of N ~ C^m |", "|---|---|---|"]
    for family in found["families"]:
        cells = (_exponent(family["least"], -1), _exponent(family["best"], 1))
        lines.append(f"| {family['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _minimum(valley: dict[str, Any]) -> str:
    count, fit = len(valley["trials"]), valley["fit"]
    if fit is None:
        return f"{count} | none within those tried | | "
    residual = math.sqrt(statistics.fmean(each**2 for each in fit["residuals"]))
    sizes, losses = _interval(fit["best"], ",.0f"), _interval(fit["least"], ".3f")
    return f"{count} | {sizes} | {losses} | {residual:.3f}"


def _exponent(law: dict[str, Any] | None, sign: int) -> str:
    if law is None:
        return "no fit"
    low, high = sorted(sign * law["exponent"][end] for end in ("low", "high"))
    value = {"value": sign * law["exponent"]["value"], "low": low, "high": high}
    return _interval(value, ".3f")


def _interval(estimate: dict[str, float], spec: str) -> str:
    value, low, high = (format(estimate[name], spec) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("workdir", "out", "page", "picture"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    options = parser.parse_args()
    made, found = measure(options.workdir)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    page = options.page.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    options.page.write_text(f"{before}{START}{table(found)}{END}{after}")
    picture.write(made, TITLE, options.picture)


if __name__ == "__main__":
    main()
