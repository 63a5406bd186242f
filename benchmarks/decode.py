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

from recursia import budget, config, model
from recursia.architecture import Model
from recursia.convert import export
from recursia.data.tokenizer import ByteTokenizer
from recursia.errors import ConfigError, UserError
from recursia.generate import decode
from recursia.generate.decoder import Decoder
from recursia.generate.engine import Engine, Request
from recursia.generate.sampling import Sampling

GREEDY = Sampling(0.0)
Turn = Callable[[int], tuple[np.ndarray, list[float]]]  # of tokens: those [B T], and their times
EARLY = {  # recursive models whose tokens stop at different recursions
    "token_choice": {"model.depth.kind": "token_choice"},
    "exit_gate, keys of the first recursion": {
        "model.depth.kind": "exit_gate",
        "model.depth.exit_threshold": "0.7",
        "model.kv.kv_sharing": "first_recursion",
    },
}
SHAPE = {  # of those models
    "model.num_layers": "16",
    "model.depth.num_recursions": "4",
    "model.sharing": "cycle",
    "model.block.embed_dim": "256",
    "model.block.feedforward.mlp_dim": "768",
    "model.block.mixer.head_dim": "64",
    "model.block.feedforward.init.std": "0.1",
}


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


def asked(options: argparse.Namespace, vocab_size: int) -> list[Request]:
    """Returns random requests, which differ in the length of prompt and continuation."""
    rng, most = np.random.default_rng(0), options.num_tokens

    def one(number: int) -> Request:
        prompt = rng.integers(0, vocab_size, rng.integers(8, 48))
        count = int(rng.integers(most // 2, most + 1))
        return Request(tuple(prompt.tolist()), count, Sampling(1.0), jax.random.key(number))

    return [one(number) for number in range(options.requests)]


def by_decoder(
    decoder: Decoder, requests: list[Request], options: argparse.Namespace, window: int
) -> None:
    """Serves requests in static batches of the decoder, each as long as its longest request."""
    for first in range(0, len(requests), options.slots):
        some = requests[first : first + options.slots]
        keys = jax.numpy.stack([request.key for request in some])
        count = max(request.num_tokens for request in some)
        prompts = [request.prompt for request in some]
        for _ in decode.stream(
            decoder, prompts, keys, num_tokens=count, window=window, end_of_text=-1
        ):
            pass


def batched(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns a row: a model whose tokens stop early, served by every discipline."""
    run = config.load("recursive:demo", {**SHAPE, **EARLY[name]})
    deep = run.model.sized(budget.vocab_size(run))
    params, requests = model.init(deep, jax.random.key(1)), asked(options, deep.vocab_size)
    window = 64 * -(-(48 + options.num_tokens) // 64)
    how = {"num_slots": options.slots, "window": window, "end_of_text": -1}
    found: dict[str, dict[str, Any]] = {}
    decoder = Decoder(params, deep, Sampling(1.0))

    def serve(discipline: Any) -> float:
        engine = Engine(params, deep, discipline=discipline, **how)
        begun = time.perf_counter()
        done = sorted(engine.serve(requests), key=lambda each: each.index)
        seconds = time.perf_counter() - begun
        read = sum(len(each.tokens) - 1 for each in done)  # one by one; a prefill draws the first
        found[discipline] = {
            "ticks": engine.ticks,
            "tokens": read,
            "tokens_per_tick": read / engine.ticks,
            "mean_recursions": sum(each.recursions for each in done) / read,
            "drawn": [each.tokens for each in done],
        }
        return seconds

    def static(_: str) -> float:
        begun = time.perf_counter()
        by_decoder(decoder, requests, options, window)
        return time.perf_counter() - begun

    turns = {"static": serve, "sequence": serve, "depth": serve, "decoder": static}
    times: dict[str, list[float]] = {kind: [] for kind in turns}
    busy: dict[str, list[float]] = {kind: [] for kind in turns}
    for number in range(options.rounds + 1):  # the first compiles
        for kind in list(turns)[:: -1 if number % 2 else 1]:
            begun = time.process_time()
            seconds = turns[kind](kind)
            if number:
                times[kind].append(seconds)
                busy[kind].append(time.process_time() - begun)
    drawn = [each.pop("drawn") for each in found.values()]
    assert drawn[0] == drawn[1] == drawn[2], "a discipline changed what a request gets"
    ideal = deep.schedule.num_recursions / found["depth"]["mean_recursions"]
    ratio = found["depth"]["tokens_per_tick"] / found["sequence"]["tokens_per_tick"]
    speed = lambda kind, each: statistics.median(
        a / b for a, b in zip(each[kind], each["depth"], strict=True)
    )
    return {
        "model": name,
        "settings": {**SHAPE, **EARLY[name]},
        "dtype": deep.dtype,
        "slots": options.slots,
        "requests": options.requests,
        "recursions": deep.schedule.num_recursions,
        "by_discipline": found,
        "seconds": {kind: statistics.median(each) for kind, each in times.items()},
        "processor_seconds": {kind: statistics.median(each) for kind, each in busy.items()},
        "recursions_over_mean": ideal,
        "depth_over_sequence": {
            "tokens_per_tick": ratio,
            "of_recursions_over_mean": ratio / ideal,
        },
        "speed_of_depth_over": {
            kind: {"by_time": speed(kind, times), "by_processor_time": speed(kind, busy)}
            for kind in turns
            if kind != "depth"
        },
    }


def shown_batched(row: dict[str, Any]) -> str:
    """Returns a row of `batching` as lines."""
    over, lines = row["depth_over_sequence"], [row["model"]]
    for kind, each in row["by_discipline"].items():
        lines.append(
            f"  {kind:9} {each['ticks']:6,} ticks  {each['tokens_per_tick']:6.3f} tokens/tick  "
            f"{row['seconds'][kind]:7.2f} s"
        )
    lines.append(
        f"  depth over sequence by ticks: {over['tokens_per_tick']:.3f} of "
        f"{row['recursions_over_mean']:.3f} ({over['of_recursions_over_mean']:.1%})"
    )
    for kind, speed in row["speed_of_depth_over"].items():
        by_time, by_processor = speed["by_time"], speed["by_processor_time"]
        lines.append(f"  depth over {kind}: {by_time:.2f} by time, {by_processor:.2f} by processor")
    return "\n".join(lines)


def batching(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the part `batching`."""
    rows = []
    for name in EARLY:
        rows.append(batched(name, options))
        print(shown_batched(rows[-1]), flush=True)
    return {"rounds": options.rounds, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """Returns the tables of docs/decoding.md, of the parts that were measured."""
    lines = []
    if "cache" in found:
        lines += [
            "| batch | prompt | time over transformers' | processor time |",
            "|---|---|---|---|",
        ]
        for row in found["cache"]["rows"]:
            busy = row["processor_seconds_per_token"]
            lines.append(
                f"| {row['batch']} | {row['prompt_tokens']} | {row['ratio']:.2f} | "
                f"{busy['ours'] / busy['theirs']:.2f} |"
            )
        lines.append("")
    lines += [
        "| exits | mean recursions | static | sequence | depth | over sequence | possible |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["batching"]["rows"]:
        over, by = row["depth_over_sequence"], row["by_discipline"]
        kinds = " | ".join(f"{by[kind]['tokens_per_tick']:.2f}" for kind in by)
        lines.append(
            f"| {row['model']} | {by['depth']['mean_recursions']:.2f} | {kinds} | "
            f"{over['tokens_per_tick']:.2f} | {row['recursions_over_mean']:.2f} |"
        )
    return "\n".join(lines) + "\n"


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
    for name, part in (("cache", cached), ("batching", batching)):
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
