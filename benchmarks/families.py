r"""Every system at equal training FLOPs: loss and what is noise, parameters, KV cache, time.

Trains each `tiny` preset on the bytes of the bundled text with every seed, until it has spent the
training FLOPs that the first preset spends in its own steps. Each run is a command in a process of
its own, and interrupted runs resume. Then a step of each preset is timed, in turns in one process,
and the results are written as a JSON file, a Markdown table and a plot. A seed is that of the
parameters and of the order of the data: losses are compared with the first preset's seed by seed.
Models are small, the text is short, and all have the same learning rate: the results hold for this
size only.

  python benchmarks/families.py --workdir=runs/families --out=benchmarks/results/families_cpu.json
  python benchmarks/families.py ... --table=docs/families.md --plot=docs/families.png
"""

import argparse
import concurrent.futures
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
from scipy import stats

from recursia import accounting, config, presets, settings, sharding
from recursia.train.step import Trainer

FIRST = "vanilla:tiny"  # the others are compared with it
VARIANTS = ("mor:tiny_token",)
VOCAB = 257  # bytes and the end of a document


def every_system() -> list[str]:
    """Returns the `tiny` preset of each shipped system, the plain one first."""
    found = [f"{name}:tiny" for name in presets.shipped()]
    return [FIRST, *(name for name in sorted([*found, *VARIANTS]) if name != FIRST)]


def flops_per_step(run: settings.Run) -> float:
    """Returns the training FLOPs of one step, as `recursia budget` counts them."""
    model = run.model.sized(VOCAB)
    return run.train.batch_size * accounting.training_flops(model, run.train.seq_len)


def plan(names: list[str], num_steps: int) -> dict[str, dict]:
    """Returns the steps of each preset at the training FLOPs of `num_steps` of the first."""
    total, plans = None, {}
    for name in names:
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
            "cache_bytes_per_token": cost.cache_bytes_per_token,
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
        "divergence.deviations": 0,  # a spike of the loss is a result
        "eval.every_steps": 0,
        "eval.num_batches": options.eval_batches,
        "eval.prompts": "",
        "log.sinks": "",
    }
    command = [sys.executable, "-m", "recursia", "train", f"--config={name}"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{field}={value}" for field, value in settings_.items()]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(options.workdir / "compiled")}
    if not (last := validation(workdir, steps)):
        done = subprocess.run(command, env={**os.environ, **cache}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        print(f"{time.strftime('%H:%M')} {name}, seed {seed}: {steps} steps", flush=True)
        last = validation(workdir, steps)
    causal = last.get("validation_bits_per_byte_causal", last["validation_bits_per_byte"])
    return {
        "validation_bits_per_byte": last["validation_bits_per_byte"],
        "validation_bits_per_byte_causal": causal,
        "mean_depth": last.get("validation_mean_depth_causal", last["validation_mean_depth"]),
    }


def validation(workdir: pathlib.Path, step: int) -> dict:
    """Returns the row of metrics with a run's validation after a step; empty before that."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if "validation_loss" in line]
    return next((row for row in rows if row["step"] == step), {})


def step_seconds(names: list[str], repeats: int) -> dict[str, float]:
    """Returns the median time of a training step of each preset, measured in turns."""
    states, steps, batches = {}, {}, {}
    for name in names:
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
    times = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            start = time.perf_counter()
            states[name], metrics = steps[name](states[name], batches[name])
            jax.block_until_ready((states[name].params, metrics))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def interval(values: list[float]) -> float:
    """Returns half the width of the 95 % confidence interval of a mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def bits(row: dict) -> list[float]:
    """Returns the bits per byte of each seed."""
    return [run["validation_bits_per_byte_causal"] for run in row["seeds"]]


def measure(options: argparse.Namespace) -> dict:
    """Returns a row for each preset: its costs, and its results over the seeds."""
    rows = plan(options.presets.split(","), options.num_steps)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            name: [
                pool.submit(train, name, seed, costs["steps"], options)
                for seed in range(options.seeds)
            ]
            for name, costs in rows.items()
        }
        for name, row in rows.items():
            row["seeds"] = [run.result() for run in runs[name]]
    seconds = step_seconds(list(rows), options.repeats)
    first = next(iter(rows))
    whole = {name: seconds[name] * row["steps"] for name, row in rows.items()}
    for name, row in rows.items():
        over = [ours - theirs for ours, theirs in zip(bits(row), bits(rows[first]), strict=True)]
        row |= {
            "bits_per_byte": statistics.mean(bits(row)),
            "interval": interval(bits(row)),
            "over_first": statistics.mean(over),
            "over_first_interval": interval(over),
            "time_ratio": whole[name] / whole[first],
        }
    return rows


def over(row: dict, is_first: bool) -> str:
    """Returns how much more bits a preset has than the first one, and whether that is noise."""
    if is_first:
        return "itself"
    text = f"{row['over_first']:+.3f} ± {row['over_first_interval']:.3f}"
    is_noise = abs(row["over_first"]) <= row["over_first_interval"]
    return f"{text}, noise" if is_noise else text


def table(rows: dict[str, dict]) -> str:
    """Returns the rows as a Markdown table, the best loss first."""
    first = next(iter(rows))
    head = (
        f"| preset | bits per byte | over `{first}` | parameters | applied | KV cache | "
        "steps | time |\n|---|---|---|---|---|---|---|---|\n"
    )
    line = (
        "| {name} | {bits_per_byte:.3f} ± {interval:.3f} | {over} | {unique_parameters:,} | "
        "{applied_parameters:,} | {cache_bytes_per_token:,.0f} | {steps:,} | {time_ratio:.2f} |\n"
    )
    best = sorted(rows.items(), key=lambda item: item[1]["bits_per_byte"])
    said = lambda name, row: line.format(name=name, over=over(row, name == first), **row)
    return head + "".join(said(name, row) for name, row in best)


def draw(rows: dict[str, dict], path: pathlib.Path) -> None:
    """Draws a line for each preset: loss of each seed and its interval, parameters, and time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    first = next(iter(rows))
    names = sorted(rows, key=lambda name: -rows[name]["bits_per_byte"])
    lines, of = range(len(names)), lambda key: [rows[name][key] for name in names]
    figure, (loss, size, time_) = plt.subplots(
        1, 3, figsize=(10, 0.22 * len(names) + 1), layout="constrained", sharey=True,
        width_ratios=(3, 1, 1),
    )  # fmt: skip
    loss.errorbar(of("bits_per_byte"), lines, xerr=of("interval"), fmt="|", color="tab:gray")
    for line, name in enumerate(names):
        loss.plot(bits(rows[name]), [line] * len(rows[name]["seeds"]), ".", color="tab:blue")
    loss.axvline(rows[first]["bits_per_byte"], color="tab:orange", linewidth=1)
    loss.set(xlabel=f"bits per byte: seeds, 95 % interval; line: {first}")
    size.plot(of("applied_parameters"), lines, "o", color="tab:gray", mfc="none", label="applied")
    size.plot(of("unique_parameters"), lines, "o", color="tab:blue", label="unique")
    size.set(xscale="log", xlabel="parameters")
    size.legend(fontsize=7)
    time_.plot(of("time_ratio"), lines, "o", color="tab:blue")
    time_.axvline(1, color="tab:orange", linewidth=1)
    time_.set(xlabel=f"time over {first}'s", xlim=(0, None))
    loss.set_yticks(lines, names, fontsize=8)
    loss.set_ylim(-0.7, len(names) - 0.3)
    for axes in (loss, size, time_):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    default = ",".join(every_system())
    parser.add_argument("--presets", default=default, help="the first one sets the FLOPs")
    parser.add_argument("--num_steps", type=int, default=200, help="of the first preset")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
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
