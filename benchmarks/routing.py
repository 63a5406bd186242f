r"""Does a routed recursion cost what its tokens cost?

Times one training step of a model whose capacities fall, (1, 2/3, 1/3), and of the same model with
capacity 1 everywhere, in turns in one process, and sets the ratio of the times beside the ratio of
the FLOPs. The ratio of the medians is what counts: single times depend on the machine.

  python benchmarks/routing.py                                # width 256, 512 tokens
  python benchmarks/routing.py --seq_len=1024 --out=benchmarks/results/routing.json
"""

import argparse
import json
import pathlib
import platform
import statistics
import sys
import time

import jax
import numpy as np

from recursia import accounting, config, sharding
from recursia.train.step import Trainer

CAPACITIES = {"routed": "(1.0, 0.6666666666666666, 0.3333333333333333)", "full": "(1.0, 1.0, 1.0)"}


def trainer(options: argparse.Namespace, capacity: str) -> Trainer:
    width = options.width
    overrides = {
        "model.block.embed_dim": width,
        "model.block.head_dim": 32,
        "model.block.num_heads": width // 32,
        "model.block.num_kv_heads": width // 64,
        "model.block.mlp_dim": 8 * width // 3 // 32 * 32,
        "model.num_layers": options.layers,
        "model.kv.kv_sharing": options.kv_sharing,
        "depth.capacity": capacity,
        "train.batch_size": options.batch_size,
        "train.seq_len": options.seq_len,
    }
    run = config.load("mor:tiny", {name: str(value) for name, value in overrides.items()})
    return Trainer(run, run.model.build(options.vocab_size), sharding.make_mesh(run.mesh))


def batch(options: argparse.Namespace) -> dict[str, np.ndarray]:
    shape = (options.batch_size, options.seq_len)
    tokens = np.random.default_rng(0).integers(0, options.vocab_size, shape, dtype=np.int32)
    positions = np.broadcast_to(np.arange(options.seq_len, dtype=np.int32), shape)
    ones = np.ones(shape, np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": positions,
        "segment_ids": ones,
        "weights": ones.astype(np.float32),
    }


def measure(options: argparse.Namespace) -> dict:
    """Returns times in seconds and FLOPs of a step, and their ratios, routed over full."""
    states, steps, flops, rows = {}, {}, {}, batch(options)
    for name, capacity in CAPACITIES.items():
        made = trainer(options, capacity)
        steps[name], states[name] = made.step_function(0), made.init()
        states[name], _ = steps[name](states[name], made.put(rows))
        flops[name] = accounting.budget(made.model, options.seq_len).training_flops_per_token
    times = {name: [] for name in CAPACITIES}
    for _ in range(options.repeats):
        for name in CAPACITIES:
            start = time.perf_counter()
            states[name], metrics = steps[name](states[name], made.put(rows))
            jax.block_until_ready((states[name].params, metrics))
            times[name].append(time.perf_counter() - start)
    pairs = [a / b for a, b in zip(times["routed"], times["full"], strict=True)]
    ratio, flop_ratio = statistics.median(pairs), flops["routed"] / flops["full"]
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "time_ratio": ratio,
        "time_ratio_quartiles": statistics.quantiles(pairs, n=4)[::2],
        "flop_ratio": flop_ratio,
        "time_over_flops": ratio / flop_ratio,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="time ratio of routing against its FLOP ratio")
    for name, default in [("width", 256), ("seq_len", 512), ("layers", 14), ("batch_size", 8)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocab_size", type=int, default=257)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kv_sharing", default="own", choices=("own", "first_recursion"))
    parser.add_argument("--out", type=pathlib.Path, help="write the result here as JSON")
    options = parser.parse_args()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "device": jax.devices()[0].device_kind,
        "cpu": platform.machine(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "dtype": "float32",
        "shapes": {k: v for k, v in vars(options).items() if isinstance(v, int)},
        "kv_sharing": options.kv_sharing,
        **measure(options),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
