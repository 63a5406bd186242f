r"""A page of `docs/results` from a finished sweep: its table, its picture and its numbers.

  recursia sweep --config=sweeps/memories:tiny --workdir=sweeps/memories
  python benchmarks/questions.py --workdir=sweeps/memories --name=memories

`NAME_cpu.json` in `benchmarks/results` has every trial's loss, what the report compares, and the
machine's versions; `docs/results/NAME.md` gets the table, and `NAME.png` stands beside it.
"""

import argparse
import json
import pathlib
import platform
import sys
import tempfile

import jax

from recursia import cli

ROOT = pathlib.Path(__file__).parents[1]
BEGIN, END = "<!-- table -->\n", "<!-- end -->"


def table(found: dict) -> str:
    """Returns the arms as a Markdown table."""
    lines = ["| | nats per byte | over the best | seeds | learning rate | parameters | steps |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for arm in found["arms"]:
        loss, over = arm["loss"], arm["over_best"]
        said = "" if over is None else f"{over['value']:+.3f} ± {over['half']:.3f}"
        is_noise = over is not None and abs(over["value"]) <= over["half"]
        rate = f"{arm['rate']:g}" + ", at an end" * arm["is_at_end"]
        seeds = f"{len(arm['losses'])}" + f", {arm['diverged']} diverged" * bool(arm["diverged"])
        lines.append(
            f"| {arm['name']} | {loss['value']:.3f} ± {loss['half']:.3f} | "
            f"{said}{', noise' * is_noise} | {seeds} | {rate} | {arm['size']:,} | "
            f"{found['steps'][arm['name']]:,} |"
        )
    return "\n".join(lines) + "\n"


def measured(workdir: pathlib.Path, command: str, picture: pathlib.Path) -> dict:
    """Draws the picture of a sweep; returns its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = pathlib.Path(folder) / "report.png"
        if cli.main(["sweep", "report", f"--workdir={workdir}", f"--out={drawn}"]):
            raise SystemExit(f"{workdir}: has no report")
        made = json.loads(drawn.with_suffix(".json").read_text())
        picture.write_bytes(drawn.read_bytes())
    steps = {}
    for trial in made["trials"]:
        rows = (workdir / "trials" / trial["name"] / "metrics.jsonl").read_text().splitlines()
        trial["steps"] = json.loads(rows[-1])["step"] if rows else 0
    for arm in made["arms"]:
        of = [t["steps"] for t in made["trials"] if is_of(arm, t)]
        steps[arm["name"]] = max(of)
    return {
        "command": command,
        "device": jax.default_backend(),
        "cpu": platform.machine(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "dtype": "float32",
        "method": made["method"],
        "arms": made["arms"],
        "steps": steps,
        "families": made["families"],
        "trials": [{k: t[k] for k in ("name", "labels", "loss", "steps")} for t in made["trials"]],
    }


def is_of(arm: dict, trial: dict) -> bool:
    """Returns whether a trial is one of an arm's, which has its loss."""
    return arm["losses"].get(str(trial["labels"].get("seed"))) == trial["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True, help="of the sweep, its page and its picture")
    options = parser.parse_args()
    page, picture = (ROOT / "docs" / "results" / f"{options.name}{end}" for end in (".md", ".png"))
    found = measured(options.workdir, "python " + " ".join(sys.argv), picture)
    path = ROOT / "benchmarks" / "results" / f"question_{options.name}_cpu.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{table(found)}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
