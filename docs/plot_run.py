"""Draws a run, with matplotlib: python docs/plot_run.py --workdir=runs/demo --out=demo.png."""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def curve(rows: list[dict], name: str) -> tuple[list[int], list]:
    """Returns the steps that have a quantity, and its values."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def draw(rows: list[dict], title: str) -> plt.Figure:
    """Returns the figure: loss, loss after each recursion, tokens that decide as is decided."""
    figure, (loss, lens, router) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    loss.plot(*curve(rows, "loss"), color="0.7", label="training")
    loss.plot(*curve(rows, "validation_loss"), "o-", label="validation, best-scored tokens")
    if any("validation_loss_causal" in row for row in rows):
        loss.plot(*curve(rows, "validation_loss_causal"), "s--", label="validation, causal")
    loss.set(title="loss", ylabel="nats per token")
    steps, values = curve(rows, "validation_lens_loss")
    for recursion in range(len(values[0])):
        label = f"after recursion {recursion + 1}"
        lens.plot(steps, [value[recursion] for value in values], "o-", label=label)
    lens.set(title="validation, read after each recursion", ylabel="nats per token")
    steps, values = curve(rows, "router_agreement")
    for recursion in range(len(values[0]) if values else 0):
        label = f"recursion {recursion + 1}"
        router.plot(steps, [value[recursion] for value in values], label=label)
    router.set(title="agreement of own score with choice", ylim=(0, 1.02))
    for axes in (loss, lens, router):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def main() -> None:
    """Reads metrics.jsonl of a run and writes a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    lines = (options.workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    draw([json.loads(line) for line in lines], options.title).savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
