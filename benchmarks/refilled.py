"""Requests with early exits, served in batches that are refilled by recursion or by sequence."""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

from recursia import budget, config, model
from recursia.architecture import Model
from recursia.generate import decode
from recursia.generate.decoder import Decoder
from recursia.generate.engine import Engine, Request
from recursia.generate.sampling import Sampling

Times = dict[str, list[float]]  # seconds of each round, by discipline
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


def served(
    deep: Model, requests: list[Request], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], Times, Times]:
    """Returns what each discipline makes of the requests, and its times and processor times."""
    params = model.init(deep, jax.random.key(1))
    window = 64 * -(-(48 + options.num_tokens) // 64)
    how = {"num_slots": options.slots, "window": window, "end_of_text": -1}
    decoder = Decoder(params, deep, Sampling(1.0))
    found: dict[str, dict[str, Any]] = {}

    def serve(discipline: Any) -> None:
        engine = Engine(params, deep, discipline=discipline, **how)
        done = sorted(engine.serve(requests), key=lambda each: each.index)
        read = sum(len(each.tokens) - 1 for each in done)  # one by one; a prefill draws the first
        found[discipline] = {
            "ticks": engine.ticks,
            "tokens": read,
            "tokens_per_tick": read / engine.ticks,
            "mean_recursions": sum(each.recursions for each in done) / read,
            "drawn": [each.tokens for each in done],
        }

    decode_all = lambda _: by_decoder(decoder, requests, options, window)
    turns = {"static": serve, "sequence": serve, "depth": serve, "decoder": decode_all}
    times: Times = {kind: [] for kind in turns}
    busy: Times = {kind: [] for kind in turns}
    for number in range(options.rounds + 1):  # the first compiles
        for kind in list(turns)[:: -1 if number % 2 else 1]:
            begun = time.perf_counter(), time.process_time()
            turns[kind](kind)
            if number:
                times[kind].append(time.perf_counter() - begun[0])
                busy[kind].append(time.process_time() - begun[1])
    drawn = [each.pop("drawn") for each in found.values()]
    assert drawn[0] == drawn[1] == drawn[2], "a discipline changed what a request gets"
    return found, times, busy


def batched(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns a row: a model whose tokens stop early, served by every discipline."""
    run = config.load("recursive:demo", {**SHAPE, **EARLY[name]})
    deep = run.model.sized(budget.vocab_size(run))
    found, times, busy = served(deep, asked(options, deep.vocab_size), options)
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
            for kind in times
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
    """Returns the table of docs/decoding.md."""
    lines = [
        "| exits | recursions | static | sequence | depth | over sequence | possible | by time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        over, by = row["depth_over_sequence"], row["by_discipline"]
        kinds = " | ".join(f"{by[kind]['tokens_per_tick']:.2f}" for kind in by)
        lines.append(
            f"| {row['model']} | {by['depth']['mean_recursions']:.2f} | {kinds} | "
            f"{over['tokens_per_tick']:.2f} | {row['recursions_over_mean']:.2f} | "
            f"{row['speed_of_depth_over']['sequence']['by_time']:.2f} |"
        )
    return "\n".join(lines) + "\n"
