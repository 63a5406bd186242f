r"""Decoding: with a cache beside transformers, and in batches that are refilled by recursion.

`cache`: a dense Llama of random weights continues a random prompt, greedily, in every row of a
batch, here and in transformers with its cache. Both take turns of a few tokens; a time is the
median over turns of the median over their tokens, and a ratio the median over turns, as single
times depend on the machine. The time of the processor is given as well: other work on the machine
does not enter it.

`batching`: the same requests are served in slots by three disciplines (static batches, continuous
by sequence, continuous by depth) and by the decoder in static batches. Ticks, applications of the
shared core to a full batch, are exact; times are medians over rounds.

  python benchmarks/decode.py --out=benchmarks/results/decode_cpu.json
  python benchmarks/decode.py --parts=batching --rounds=1 --requests=4 --num_tokens=8

A part that is not measured stays as it is in --out. `cache` needs PyTorch and transformers:
pip install torch transformers.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import refilled

from recursia import budget, config, model
from recursia.architecture import Model
from recursia.convert import export
from recursia.data.tokenizer import ByteTokenizer
from recursia.errors import ConfigError, UserError
from recursia.generate import decode
from recursia.generate.decoder import Decoder
from recursia.generate.sampling import Sampling

GREEDY = Sampling(0.0)
Turn = Callable[[int], tuple[np.ndarray, list[float]]]  # of tokens: those [B T], and their times


def ours(config: Model, params: Any, prompt: list[int], batch: int, room: int) -> Turn:
    """Returns our decoding of a prompt in every row of a batch; the prompt is read once."""
    decoder = Decoder(params, config, GREEDY)
    state = decoder.start([prompt], jax.random.split(jax.random.key(0), 1), room)
    many = lambda leaf: leaf[np.zeros(batch, int)] if leaf.ndim else leaf
    rows = {name: many(getattr(state, name)) for name in ("token", "position", "is_open", "keys")}
    state = dataclasses.replace(state, cache=jax.tree.map(many, state.cache), **rows)

    def turn(count: int) -> tuple[np.ndarray, list[float]]:
        nonlocal state
        times, drawn = [time.perf_counter()], []
        for _ in range(count):
            state = decoder.step(state)
            drawn.append(jax.device_get(state.token))
            times.append(time.perf_counter())
        return np.array(drawn).T, times

    turn(1)  # compiles
    return turn


def theirs(config: Model, params: Any, prompt: list[int], batch: int, room: int) -> Turn:
    """Returns transformers' decoding of the same, by the same weights."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        export.export(config, params, ByteTokenizer(), "llama", room, pathlib.Path(folder))
        llama = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    state: Any = {"ids": torch.tensor([prompt]), "past": None}

    class Times(transformers.generation.BaseStreamer):
        """Notes when each token comes."""

        def __init__(self):
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def turn(count: int) -> tuple[np.ndarray, list[float]]:
        times, before = Times(), state["ids"].shape[1]
        done = llama.generate(
            state["ids"],
            attention_mask=torch.ones_like(state["ids"]),
            cache=state["past"],
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=times,
            return_dict_in_generate=True,
        )
        state.update(ids=done.sequences, past=done.past_key_values)
        # The first time is that of the ids that were given; the first token has what is prepared.
        return done.sequences[:, before:].numpy(), times.times[1:]

    turn(1)
    state["past"].batch_repeat_interleave(batch)
    state["ids"] = state["ids"].repeat(batch, 1)
    turn(1)
    return turn


def beside(
    config: Model, params: Any, shape: tuple[int, int], rounds: int, steps: int
) -> dict[str, Any]:
    """Returns a row: a batch and a length of prompts, ours beside theirs."""
    batch, length = shape
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, length).tolist()
    room = -(-(length + 4 + rounds * steps) // 64) * 64
    given = config, params, prompt, batch, room
    turns = {"ours": ours(*given), "theirs": theirs(*given)}
    times, busy, drawn = ({name: [] for name in turns} for _ in range(3))
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            begun = time.process_time()
            tokens, moments = turns[name](steps)
            busy[name].append((time.process_time() - begun) / steps)
            times[name].append(statistics.median(np.diff(moments).tolist()))
            drawn[name].append(tokens)
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    same = np.mean([np.array_equal(*pair) for pair in zip(*drawn.values(), strict=True)])
    third = max(rounds // 3, 1)
    lowered = decode.lower(config, room, jax.devices()[0]).compile().cost_analysis()
    return {
        "batch": batch,
        "prompt_tokens": length,
        "room": room,
        "seconds_per_token": {name: statistics.median(each) for name, each in times.items()},
        "processor_seconds_per_token": {n: statistics.median(each) for n, each in busy.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "last_over_first_turns": {
            name: statistics.median(each[-third:]) / statistics.median(each[:third])
            for name, each in busy.items()
        },
        "turns_with_equal_tokens": float(same),
        "program_of_one_text": {
            "flops": lowered["flops"],
            "bytes_accessed": lowered["bytes accessed"],
        },
    }


def cached(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the part `cache`.

    Raises:
      ConfigError: if PyTorch or transformers is missing.
    """
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--parts=cache: {error}; pip install torch transformers, or take --parts=batching"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run = config.load(options.preset, {"model.dtype": "float32"})
    dense = run.model.sized(budget.vocab_size(run))
    params, rows = model.init(dense, jax.random.key(0)), []
    for batch in options.batches:
        for length in options.prompts:
            rows.append(beside(dense, params, (batch, length), options.rounds, options.steps))
            print(shown_beside(rows[-1]), flush=True)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {
        "preset": options.preset,
        "dtype": dense.dtype,
        "weight_bytes": weights,
        "threads": {"torch": torch.get_num_threads()},
        "rounds": options.rounds,
        "tokens_of_a_turn": options.steps,
        "rows": rows,
    }


def shown_beside(row: dict[str, Any]) -> str:
    """Returns a row of `cache` as a line."""
    each, (low, high) = row["seconds_per_token"], row["ratio_quartiles"]
    busy = row["processor_seconds_per_token"]
    return (
        f"batch {row['batch']}, prompt {row['prompt_tokens']:5}: {1e3 * each['ours']:.1f} ms over "
        f"{1e3 * each['theirs']:.1f} ms per token, ratio {row['ratio']:.2f} ({low:.2f} to "
        f"{high:.2f}), processor {busy['ours'] / busy['theirs']:.2f}; equal tokens in "
        f"{row['turns_with_equal_tokens']:.0%} of turns"
    )


def table(found: dict[str, Any]) -> str:
    """Returns the tables of docs/decoding.md."""
    lines = [
        "| batch | prompt | time over theirs | quartiles | processor time | late over early |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["cache"]["rows"]:
        busy, (low, high) = row["processor_seconds_per_token"], row["ratio_quartiles"]
        lines.append(
            f"| {row['batch']} | {row['prompt_tokens']} | {row['ratio']:.2f} | {low:.2f}, "
            f"{high:.2f} | {busy['ours'] / busy['theirs']:.2f} | "
            f"{row['last_over_first_turns']['ours']:.2f} |"
        )
    lines.append("")
    return "\n".join(lines) + "\n" + refilled.table(found["batching"])


def parse(words: list[str]) -> argparse.Namespace:
    """Returns the options."""
    numbers = lambda typed: tuple(map(int, typed.split(",")))
    parser = argparse.ArgumentParser(description="speed of decoding", allow_abbrev=False)
    parser.add_argument("--parts", default="cache,batching", help="cache, batching")
    parser.add_argument("--preset", default="vanilla:135m", help="of `cache`: a dense Llama")
    parser.add_argument("--batches", type=numbers, default=(1, 8), help="of `cache`")
    parser.add_argument("--prompts", type=numbers, default=(128, 1024), help="tokens, of `cache`")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="tokens of a turn of `cache`")
    parser.add_argument("--slots", type=int, default=8, help="of `batching`")
    parser.add_argument("--requests", type=int, default=32, help="of `batching`")
    parser.add_argument("--num_tokens", type=int, default=96, help="of the longest request")
    parser.add_argument("--out", type=pathlib.Path, help="write the result here as JSON")
    options = parser.parse_args(words)
    if wrong := set(options.parts.split(",")) - {"cache", "batching"}:
        parser.error(f"--parts: got {', '.join(sorted(wrong))}, takes cache, batching")
    return options


def versions() -> dict[str, str]:
    """Returns the versions of the packages that were measured."""
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in ("jax", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def results(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yields the parts that were asked for, by name."""
    for name, part in (("cache", cached), ("batching", refilled.batching)):
        if name in options.parts.split(","):
            rows = part(options)
            measured = {
                "command": " ".join(["python", "benchmarks/decode.py", *sys.argv[1:]]),
                "device": jax.devices()[0].device_kind,
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
                "versions": versions(),
            }
            yield name, {**measured, **rows}


def main() -> int:
    """Runs the command; a user's error is one line."""
    options = parse(sys.argv[1:])
    try:
        parts = dict(results(options))
    except UserError as error:
        print(f"decode: {error}", file=sys.stderr)
        return error.exit_code
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps({**before, **parts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
