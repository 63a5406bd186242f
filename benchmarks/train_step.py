r"""Tokens/s and utilisation of training steps, compared with a dense model of equal FLOPs.

Each preset takes turns with the unshared stack of equal FLOPs per token (or with the preset of
--versus). A model with capacities is also compared with itself at capacity 1, and with --torch the
preset, or if PyTorch does not have it the dense model, with the same model in plain PyTorch, in a
process of its own; on an AMD processor twice, as installed and with Intel's matrix library told to
take its fast path ("torch_fast"). The results are medians of ratios within a round, as single times
depend on the machine. On a CPU sizes are divided by --cut.

  python benchmarks/train_step.py --presets=mor:360m,recursive:360m --torch \
      --out=benchmarks/results/train_step_h100.json                     # bfloat16, T 2048
  python benchmarks/train_step.py --presets=mor:360m --cut=4            # for a CPU
  python benchmarks/train_step.py --presets=mor:360m --config.train.remat=block

Utilisation is tokens/s times `training_flops_per_token` over the device's peak. Those FLOPs count
the masked half of attention, as is customary, and nothing that is computed again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rivals import Shape, is_llama, load, rivals
from torch_process import PRODUCT, TorchProcess, may_be_slow, rate

from recursia import accounting, budget, settings, sharding
from recursia.errors import ConfigError, UserError
from recursia.train import metrics
from recursia.train.step import Trainer

FIRST = ("loss", "gradient_norm")  # of the first step
# Relative, of the loss of a first step in JAX and in PyTorch; ten times as much of the norm.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
Turn = Callable[[int], Any]  # makes so many steps and waits for them


def batch(run: settings.Run, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns random rows."""
    shape = run.train.batch_size, run.train.seq_len
    tokens = np.random.default_rng(0).integers(0, vocab_size, shape, dtype=np.int32)
    ones = np.ones(shape, np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        "segment_ids": ones,
        "weights": ones.astype(np.float32),
    }


def ours(run: settings.Run) -> tuple[Turn, dict[str, Any], dict[str, float]]:
    """Returns a run's timed function, initial weights, and the metrics of its first step."""
    vocab_size = budget.vocab_size(run)
    trainer = Trainer(run, run.model.sized(vocab_size), sharding.make_mesh(run.mesh))
    step, rows = trainer.step_function(run.train.num_steps), trainer.put(batch(run, vocab_size))
    state = trainer.init()
    weights = jax.device_get(state.params)
    state, first = step(state, rows)

    def turn(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, measured = step(state, rows)
        jax.block_until_ready((state, measured))

    return turn, weights, {name: float(first[name]) for name in FIRST}


def timed(turns: dict[str, Turn], rounds: int, steps: int) -> dict[str, list[float]]:
    """Returns the seconds of a step in each round, for models that take turns of `steps` steps."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn(1)
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            turns[name](steps)
            times[name].append((time.perf_counter() - start) / steps)
    return times


def described(run: settings.Run, seconds: list[float], peak: float) -> dict[str, Any]:
    """Returns a model's size, FLOPs per token, tokens per second and utilisation."""
    model, train = run.model.sized(budget.vocab_size(run)), run.train
    cost = accounting.budget(model, train.seq_len, train.rematerialisation)
    step = statistics.median(seconds)
    rate = train.batch_size * train.seq_len / step
    return {
        "layers": run.model.num_layers,
        "block": dataclasses.asdict(run.model.block),
        "vocab_size": model.vocab_size,
        "unique_parameters": cost.unique_parameters,
        "training_flops_per_token": cost.training_flops_per_token,
        "executed_training_flops_per_token": cost.executed_training_flops_per_token,
        "seconds_per_step": step,
        "tokens_per_second": rate,
        "utilisation": rate * cost.training_flops_per_token / peak,
    }


def compared(times: dict[str, list[float]], flops: dict[str, float]) -> dict[str, Any]:
    """Returns the cost of the first model relative to each other one."""
    (first, mine), *others = times.items()
    found = {}
    for name, theirs in others:
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        ratio, flop_ratio = statistics.median(ratios), flops[first] / flops[name]
        found[name] = {
            "time_ratio": ratio,
            "time_ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
            "flop_ratio": flop_ratio,
            "time_over_flops": ratio / flop_ratio,
        }
        if name == "full_capacity" and flop_ratio < 1:
            found[name]["saving_realised"] = (1 - ratio) / (1 - flop_ratio)
    return found


def measure(
    name: str,
    runs: dict[str, settings.Run],
    options: argparse.Namespace,
    peak: float,
) -> dict[str, Any]:
    """Returns a row of the result: the models of a preset, and ratios of the first to each other.

    With --torch, `over` has the same model in PyTorch, or if PyTorch does not have the preset,
    `dense_over_torch` is the ratio of the dense model to its own in PyTorch.

    Raises:
      UserError: if the first steps of JAX and PyTorch differ, or neither model is one it has.
    """
    turns, firsts, processes, twin = {}, {}, {}, ""
    with contextlib.ExitStack() as stack:
        for label, run in runs.items():
            turns[label], weights, firsts[label] = ours(run)
            if options.torch and not twin and is_llama(run):
                twin = label
                processes = in_torch(run, weights, firsts[label], stack)
        if options.torch and not twin:
            raise ConfigError(f"--torch: it has neither {name} nor a dense model of its FLOPs")
        turns |= {label: process.turn for label, process in processes.items()}
        times = timed(turns, options.rounds, options.steps)
    firsts |= {k: {n: p.told[n] for n in FIRST} for k, p in processes.items()}
    models = {
        label: {
            **described(runs[twin if label in processes else label], each, peak),
            **firsts[label],
        }
        for label, each in times.items()
    }
    flops = {label: model["training_flops_per_token"] for label, model in models.items()}
    row = {"preset": name, "models": models, "over": compared(times, flops)}
    if processes:
        row["torch"] = {label: process.told for label, process in processes.items()}
    if twin not in ("", "preset"):
        mine = {label: times[label] for label in (twin, *processes)}
        row["dense_over_torch"] = compared(mine, flops)
    return row


def in_torch(
    run: settings.Run, weights: Any, first: dict[str, float], stack: contextlib.ExitStack
) -> dict[str, TorchProcess]:
    """Returns processes with the model in PyTorch, which the stack ends.

    Raises:
      UserError: if their first steps differ from ours: two models that differ are not timed.
    """
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    kinds = {"torch": False} | ({"torch_fast": True} if device == "cpu" and may_be_slow() else {})
    rows, found = batch(run, budget.vocab_size(run)), {}
    for label, is_replaced in kinds.items():
        found[label] = process = TorchProcess(run, weights, rows, device, is_replaced)
        stack.callback(process.close)
        for name, factor in zip(FIRST, (1, 10), strict=True):
            near = factor * TOLERANCE[run.model.dtype]
            if not abs(process.told[name] / first[name] - 1) <= near:
                raise UserError(
                    f"--torch: {name} is {process.told[name]:.6g}, and {first[name]:.6g} in ours"
                )
    return found


def shown(row: dict[str, Any]) -> str:
    """Returns a row as lines of text."""
    lines = [row["preset"]]
    for label, model in row["models"].items():
        lines.append(
            f"  {label:14} {model['tokens_per_second']:12,.0f} tokens/s  "
            f"{1e-6 * model['training_flops_per_token']:8.1f} MFLOP/token  "
            f"{model['utilisation']:6.1%} of peak"
        )
    over = {f"over {label}": each for label, each in row["over"].items()}
    for label, each in row.get("dense_over_torch", {}).items():
        over[f"dense over {label}"] = each
    for label, each in over.items():
        low, high = each["time_ratio_quartiles"]
        saved = each.get("saving_realised")
        lines.append(
            f"  {label}: time {each['time_ratio']:.3f} ({low:.3f} to {high:.3f})  "
            f"FLOPs {each['flop_ratio']:.3f}  time per FLOP {each['time_over_flops']:.3f}"
            + (f"  {saved:.0%} of the saving" if saved is not None else "")
        )
    for label, told in row.get("torch", {}).items():
        lines.append(f"  {label}: products by {told['library']} at {told['gflops']:,.0f} GFLOP/s")
    return "\n".join(lines)


def parse(words: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options, and overrides of every model."""
    is_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description="speed of training steps", allow_abbrev=False)
    parser.add_argument("--presets", default="mor:360m,recursive:360m,moeut:244m")
    parser.add_argument("--versus", help="a dense preset, instead of one of equal FLOPs")
    parser.add_argument("--torch", action="store_true", help="the same model in PyTorch too")
    parser.add_argument("--cut", type=int, default=8 if is_cpu else 1, help="divides all sizes")
    for name in ("layers", "width", "seq_len"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=4 if is_cpu else 16)
    parser.add_argument("--rounds", type=int, default=5 if is_cpu else 20)
    parser.add_argument("--steps", type=int, default=1 if is_cpu else 3, help="of a turn")
    parser.add_argument("--out", type=pathlib.Path, help="write the result here as JSON")
    options, rest = parser.parse_known_args(words)
    overrides = {}
    for word in rest:
        field, is_set, value = word.removeprefix("--config.").partition("=")
        if not (word.startswith("--config.") and is_set):
            parser.error(f"{word}: takes options, and --config.FIELD=VALUE of every model")
        overrides[field] = value
    return options, overrides


def run_all(options: argparse.Namespace, overrides: dict[str, str]) -> dict[str, Any]:
    """Returns the result, printing rows as they are measured."""
    if options.torch and jax.device_count() > 1:
        raise ConfigError(f"--torch: measures one device, {jax.device_count()} are here; show one")
    sizes = {field.name: getattr(options, field.name) for field in dataclasses.fields(Shape)}
    shape, peak, rows = Shape(**sizes), metrics.peak_flops(), []
    for name in options.presets.split(","):
        run = load(name, shape, overrides)
        versus = load(options.versus, shape, overrides) if options.versus else None
        row = measure(name, {"preset": run, **rivals(run, versus)}, options, peak)
        print(shown(row), flush=True)
        rows.append({**row, "seq_len": run.train.seq_len, "dtype": run.model.dtype})
    return {
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "peak_flops_per_second": peak,
        "product_gflops": own_rate(rows[0]["dtype"]),
        "shape": sizes,
        "rounds": options.rounds,
        "steps_per_turn": options.steps,
        "rows": rows,
    }


def own_rate(dtype: str) -> float:
    """Returns the GFLOP/s of a product of the sizes that PyTorch's is timed at."""
    m, k, n = PRODUCT
    left, right = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    return rate(lambda: jax.block_until_ready(product(left, right)))


def main() -> int:
    """Runs the command; a user's error is one line."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory as well
    try:
        options, overrides = parse(sys.argv[1:])
        result = run_all(options, overrides)
    except UserError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return error.exit_code
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
