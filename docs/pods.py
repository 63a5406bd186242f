"""Writes docs/pods.md: what `recursia compile` says of large runs.

  python -m docs.pods compile           # runs the commands that have no result yet: hours
  python -m docs.pods compile h100 ...  # those whose command has one of these words, anew
  python -m docs.pods                   # writes the page from the results

NVIDIA topologies need jax's CUDA plugin, and so an environment of their own (`make
.venv-gpu/installed`); run the second line in it.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

PAGE = pathlib.Path(__file__).with_name("pods.md")
RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "pods.json"

V5E = "--config=mor:1.7b --topology=v5e:16x16"
MACHINES = (
    V5E,
    "--config=mor:1.7b --topology=v5p:4x4x4",
    "--config=moeut:1b --topology=v6e:16x16",
    "--config=mor:360m --topology=h100:8",
)
SHARED = (
    "--config=vanilla:360m --topology=h100:8",
    "--config=recursive:360m --topology=h100:8",
    "--config=mor:360m --topology=h100:8",
)
NODES = "--config=mor:360m --topology=h100:8x4"
FEW = "--config=moeut:1b --topology=v6e"
BATCHES = (
    f"{FEW}:16x16",
    f"{FEW}:4x4 --config.mesh.context=1",
    f"{FEW}:16x16 --config.mesh.context=1 --config.train.batch_size=4096",
)
LONG = "--config=mor:360m --topology=v5e:8x8"
CONTEXTS = (
    LONG,
    f"{LONG} --config.train.seq_len=32768 --config.train.batch_size=64 --config.mesh.context=4",
)
MESHES = (
    V5E,
    f"{V5E} --config.mesh.data=16 --config.mesh.fsdp=16",
    NODES,
    f"{NODES} --config.mesh.data=4 --config.mesh.fsdp=8",
    f"{NODES} --config.mesh.data=32 --config.mesh.fsdp=1",
    f"{NODES} --config.mesh.fsdp=16 --config.mesh.data=2",
    f"{NODES} --config.train.num_microbatches=4",
    "--config=vanilla:360m --topology=h100:8x4 --config.train.num_microbatches=4",
)
COMMANDS = tuple(dict.fromkeys(MACHINES + SHARED + BATCHES + CONTEXTS + MESHES))

TABLES = {
    "machines": MACHINES,
    "shared": SHARED,
    "batches": BATCHES,
    "contexts": CONTEXTS,
    "meshes": MESHES,
}
TEXT = """# Before you rent the machine

`recursia compile` compiles the training step of `recursia train` for chips that need not be
present: TPU v4, v5e, v5p and v6e through libtpu, NVIDIA A100, H100 and H200 through jax's CUDA
plugin. It runs no step, and says

- whether the step fits, and if not, how much memory is missing and what to change (exit code 1);
- the bytes of each collective, and how often a step executes it, iterations of loops included;
- the least time that a step can take, by arithmetic, by memory and by network.

```sh
recursia compile --config=vanilla:tiny --topology=v5e:1x1 --output=report.json
```

A configuration names its topology; `--topology` takes another: a TPU slice by its shape
(`v5e:16x16`, `v5p:4x4x8`), slices joined by the data center's network (`v5e:16x16:2`), the GPUs of
a node (`h100:8`), several nodes (`h100:8x4`). Fields are changed as for training. `--decode` also
compiles a step of decoding, on one chip. `--json` prints one object, `--output` writes it. Several
such commands may run at once. Where libtpu ends with `SIGSEGV STACK OVERFLOW`, as on `sut:244m`,
run the command after `ulimit -s unlimited`: that step then compiles, and fits.

`--search` changes the run until the step fits: more rematerialisation, then more microbatches, then
other meshes (all five axes, by powers of two; up to 8 devices shard heads, a sequence or experts),
with the fewest sharded matrix products first. It compiles at most `--tries` programs, skips
microbatches that cannot suffice, prints the memory of each program and its options, and caches
reports beside compiled programs.

## How the numbers are computed

- **Memory** is the compiler's report: arguments by kind, temporaries, outputs without donated
  arguments, code. A program fits if the sum is at most what the compiler allows (TPU), or nine
  tenths of the memory (GPU; set `XLA_CLIENT_MEM_FRACTION=0.9`).
- **FLOPs** are the closed forms of `recursia budget`, since XLA counts the body of a loop once;
  executed FLOPs include those of rematerialisation.
- **Compute** is executed FLOPs / (chips x peak).
- **Memory time** is the bytes that the fusions of the compiled program read and write outside VMEM,
  iterations of loops included, / bandwidth: an estimate.
- **Network** is, for each collective, the bytes that a chip must send, / its bandwidth for them. In
  a group of g chips that is (g-1)/g of the array, and twice that for an all-reduce. The bandwidth
  is that of the links along the sides of the torus that the group spans, two links where a side
  wraps around and one otherwise; within a node that of NVLink; between slices or nodes, each chip
  sends its share over the network.
- **Roofline** is the longest of the three: no step is faster. Tokens per second are a range: from
  no overlap of the three to complete overlap.
- **Utilisation** is useful FLOPs / (chips x peak x time). Useful FLOPs count the masked half of
  attention, as is customary, and kernels skip most of it: of long sequences, the upper end may be
  above 100%.

The table of chips and its sources are in `recursia/chips.py`. Nothing on this page was timed. A
real step is slower, because the numbers omit matrix units that are not full, kernels below peak,
latency of small collectives, input, and checkpoints.

## Presets on their topologies

{machines}

## What sharing saves

The same width and depth without sharing (vanilla), with three recursions of shared blocks
(recursive), and with routing as well (mor). A shared weight is all-gathered once per training step,
before the recursions, and its gradient is reduced once after them.

{shared}

## Batches that are too small for a machine

With 64 sequences, as published, each of 256 chips has so few tokens that reading the weights and
summing their gradients takes 230 times as long as all matrix products. A sixteenth of the chips
takes twice as long. A larger batch uses the chips better, but 24 experts of width 128 for each
token are bound by memory at any batch size: a token's row is read and written for each of its
experts.

{batches}

## Long sequences

The mesh axis `context` shards the tokens of a sequence; keys and values are all-gathered, and
routing chooses among all tokens of the sequence. The second row has the same number of tokens per
step, in sequences 16 times as long:

{contexts}

The additional traffic is keys and values in every block, the tokens that routing chose, and
gradients of weights: the compiler reduces these over `context` once per training step where all
tokens take every recursion, and in every recursion with routing.

## Choosing a mesh

{meshes}

- Shared weights are few: shard parameters and optimizer state over `fsdp`, which gathers them once.
  The bytes that a chip sends hardly depend on the number of chips.
- Each chip also holds all shared weights, and their gradients in float32, whatever the mesh: each
  device first sums its own gradients over all recursions. Where that is too much, `tensor` shards
  them.
- On the v5e slice above, `fsdp` along one side of 16 shards parameters and optimizer state less and
  needs 2.6 GB more. It sends fewer bytes but takes longer, as unsharded gradients cross the other
  side.
- Between GPU nodes, `data` in place of some of `fsdp` saves nothing here: gradients then cross the
  network twice in float32, where parameters would have crossed once in bfloat16.
- More microbatches add little traffic: shared weights are gathered before all of them and their
  gradients reduced after, and only prelude and coda are gathered for each. Without sharing every
  weight is, as the last row shows. Prefer microbatches to more rematerialisation.
- `tensor` moves activations in every block and recursion: use it if a batch has fewer sequences
  than there are chips, or a layer is too large.
- `recursia compile --search` tries these.
"""


def compile_all(words: list[str]) -> None:
    """Runs the commands and keeps what they say."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = [c for c in COMMANDS if any(w in c for w in words)] if words else COMMANDS
    for command in chosen:
        if command in known and not words:
            continue
        print(command, flush=True)
        run = [sys.executable, "-m", "recursia", "compile", *command.split(), "--json"]
        done = subprocess.run(run, capture_output=True, text=True)
        if not done.stdout:
            print(*done.stderr.strip().splitlines()[-1:], flush=True)
            continue
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**known, command: _kept(json.loads(done.stdout))}, indent=1))


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a report without what no reader needs."""
    rows = [{k: v for k, v in row.items() if k != "source"} for row in report["collectives"]]
    return {**report, "collectives": rows[:20]}


def table(commands: tuple[str, ...], known: dict[str, Any]) -> str:
    """Returns one table of several commands."""
    lines = [
        "| | memory per chip | moves a step | compute, memory, network | M tokens/s | utilisation |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for command in commands:
        name = f"`{command.removeprefix('--')}`".replace("--", "")
        lines += [f"| {name} | " + " | ".join(_cells(known.get(command))) + " |"]
    return "\n".join(lines)


def _cells(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["not compiled yet", *[""] * 4]
    have, need = (report[f"{name}bytes_per_chip"] / 1e9 for name in ("hbm_", ""))
    if not report["fits"]:
        return [f"{need:.1f} of {have:.1f} GB: does not fit", *[""] * 4]
    sent = sum(row["sent_bytes"] * row["executions"] for row in report["collectives"])
    line = report["roofline"]
    short = lambda number: f"{number:.0f}" if number >= 100 else f"{number:.2g}"
    times = ", ".join(short(1e3 * line[part]) for part in ("compute", "memory", "network"))
    slow, fast = (report[f"{name}tokens_per_second"] / 1e6 for name in ("serial_", ""))
    use = [report[f"{name}utilisation"] for name in ("serial_", "")]
    return [
        f"{need:.1f} of {have:.1f} GB",
        f"{sent / 1e9:.3g} GB",
        f"{times} ms",
        f"{slow:.3g} to {fast:.3g}",
        " to ".join(f"{short(100 * each)}%" for each in use),
    ]


def page() -> str:
    """Returns the page."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return TEXT.format(**{name: table(commands, known) for name, commands in TABLES.items()})


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_all(sys.argv[2:])
    PAGE.write_text(page())
