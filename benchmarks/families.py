r"""Every family at equal training FLOPs: loss, parameters, FLOPs, time.

Trains each `tiny` preset on the bytes of the bundled text with every seed, until it has spent the
training FLOPs that the first preset spends in its own steps. Each run is a command in a process of
its own, and interrupted runs resume. Then a step of each preset is timed, in turns in one process,
and the results are written as a JSON file, a Markdown table and a plot. Models are small, the text
is short, and all have the same learning rate: the results hold for this size only.

  python benchmarks/families.py --workdir=runs/families --out=benchmarks/results/families_cpu.json
  python benchmarks/families.py ... --table=docs/families.md --plot=docs/families.png
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from recursia import accounting, config, settings, sharding
from recursia.train.step import Trainer

PRESETS = (
    "vanilla:tiny,looped:tiny,recursive:tiny,relaxed:tiny,universal:tiny,huginn:tiny,ouro:tiny,"
    "mor:tiny,mor:tiny_token,moeut:tiny,sut:tiny,widenet:tiny,albert:tiny"
)
VOCAB = 257  # bytes and the end of a document


def flops_per_step(run: settings.Run) -> float:
    """Returns the training FLOPs of one step, as `recursia budget` counts them."""
    model = run.model.sized(VOCAB)
    return run.train.batch_size * accounting.training_flops(model, run.train.seq_len)


def plan(presets: list[str], num_steps: int) -> dict[str, dict]:
    """Returns the steps of each preset at the training FLOPs of `num_steps` of the first."""
    total, plans = None, {}
    for name in presets:
        run = config.load(name, {})
        each = flops_per_step(run)
        total = total or num_steps * each
        model = run.model.sized(VOCAB)
        cost = accounting.budget(model, run.train.seq_len, run.train.rematerialisation)
        plans[name] = {
            "steps": round(total / each),
            "training_flops": round(total / each) * each,
            "tokens": round(total / each) * run.train.batch_size * run.train.seq_len,
            "unique_parameters": cost.unique_parameters,
            "applied_parameters": cost.applied_parameters,
            "forward_flops_per_token": cost.forward_flops_per_token,
        }
    return plans


def train(name: str, seed: int, steps: int, options: argparse.Namespace) -> dict:
    """Trains one model, or reads its finished run; returns its last validation and its speed."""
    workdir = options.workdir / f"{name.replace(':', '_')}_{seed}"
    settings_ = {
        "train.num_steps": steps,
        "train.seed": seed,
        "data.seed": seed,
        "optimizer.learning_rate": options.learning_rate,
        "checkpoint.every_steps": max(1, steps // 2),
        "checkpoint.keep": 1,
        "eval.every_steps": 0,
        "eval.num_batches": options.eval_batches,
        "eval.prompts": "",
        "log.sinks": "",
    }
    command = [sys.executable, "-m", "recursia", "train", f"--config={name}"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{field}={value}" for field, value in settings_.items()]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(options.workdir / "compiled")}
    subprocess.run(command, check=True, env={**os.environ, **cache})
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]]
    last = [row for row in rows if "validation_loss" in row][-1]
    causal = last.get("validation_bits_per_byte_causal", last["validation_bits_per_byte"])
    return {
        "validation_bits_per_byte": last["validation_bits_per_byte"],
        "validation_bits_per_byte_causal": causal,
        "mean_depth": last.get("validation_mean_depth_causal", last["validation_mean_depth"]),
    }


def step_seconds(presets: list[str], repeats: int) -> dict[str, float]:
    """Returns the median time of a training step of each preset, measured in turns."""
    states, steps, batches = {}, {}, {}
    for name in presets:
        run = config.load(name, {})
        made = Trainer(run, run.model.sized(VOCAB), sharding.make_mesh(run.mesh))
        shape = (run.train.batch_size, run.train.seq_len)
        tokens = np.random.default_rng(0).integers(0, VOCAB, shape, dtype=np.int32)
        ones = np.ones(shape, np.int32)
        place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        rows = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "positions": place}
        rows |= {"segment_ids": ones, "weights": ones.astype(np.float32)}
        batches[name], steps[name] = made.put(rows), made.step_function(0)
        states[name], _ = steps[name](made.init(), batches[name])
    times = {name: [] for name in presets}
    for _ in range(repeats):
        for name in presets:
            start = time.perf_counter()
            states[name], metrics = steps[name](states[name], batches[name])
            jax.block_until_ready((states[name].params, metrics))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(options: argparse.Namespace) -> dict:
    """Returns a row for each preset: its costs, and its results over the seeds."""
    rows = {}
    for name, costs in plan(options.presets.split(","), options.num_steps).items():
        runs = [train(name, seed, costs["steps"], options) for seed in range(options.seeds)]
        rows[name] = {**costs, "seeds": runs}
    seconds = step_seconds(list(rows), options.repeats)
    first = next(iter(rows))
    whole = {name: seconds[name] * row["steps"] for name, row in rows.items()}
    for name, row in rows.items():
        found = [run["validation_bits_per_byte_causal"] for run in row["seeds"]]
        row["bits_per_byte"] = statistics.mean(found)
        row["spread"] = max(found) - min(found)
        row["time_ratio"] = whole[name] / whole[first]
    return rows


def table(rows: dict[str, dict]) -> str:
    """Returns the rows as a Markdown table, the best loss first."""
    head = (
        "| preset | bits per byte | between seeds | parameters | applied | steps | "
        "FLOPs | time |\n|---|---|---|---|---|---|---|---|\n"
    )
    line = (
        "| {name} | {bits_per_byte:.3f} | {spread:.3f} | {unique_parameters:,} | "
        "{applied_parameters:,} | {steps:,} | {training_flops:.3g} | {time_ratio:.2f} |\n"
    )
    best = sorted(rows.items(), key=lambda item: item[1]["bits_per_byte"])
    return head + "".join(line.format(name=name, **row) for name, row in best)


def draw(rows: dict[str, dict], path: pathlib.Path) -> None:
    """Draws the losses over unique parameters and over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axes, key, label in zip(
        panels,
        ("unique_parameters", "time_ratio"),
        ("unique parameters", "time at equal FLOPs, over the first one's"),
        strict=True,
    ):
        for name, row in rows.items():
            bits = [run["validation_bits_per_byte_causal"] for run in row["seeds"]]
            (dots,) = axes.plot([row[key]] * len(bits), bits, "o", alpha=0.6)
            place = (row[key], row["bits_per_byte"])
            axes.annotate(name, place, (5, 0), textcoords="offset points", fontsize=8,
                          color=dots.get_color(), va="center")  # fmt: skip
        axes.set(xlabel=label)
        axes.margins(x=0.25)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation, bits per byte (causal)")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--presets", default=PRESETS, help="the first one sets the FLOPs")
    parser.add_argument("--num_steps", type=int, default=300, help="of the first preset")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each")
    parser.add_argument("--eval_batches", type=int, default=32)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    parser.add_argument("--table", type=pathlib.Path, help="page whose table is replaced")
    parser.add_argument("--plot", type=pathlib.Path, help="picture")
    options = parser.parse_args()
    rows = measure(options)
    print(table(rows))
    if options.out:
        found = {
            "command": "python " + " ".join(sys.argv),
            "device": jax.default_backend(),
            "cpu": platform.machine(),
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "dtype": "float32",
            "rows": rows,
        }
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.table:
        before, _, rest = options.table.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->")[2]
        page = f"{before}<!-- table -->\n{table(rows)}<!-- end -->{after}"
        options.table.write_text(page)
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
