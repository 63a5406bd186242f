"""Runs that were never trained: their files are written by hand."""

import json
import pathlib

import numpy as np

from recursia import config, jsonlines
from recursia.data.vocabulary import ByteTokenizer
from recursia.evaluate.memories import Memory
from recursia.evaluate.traces import Trace
from recursia.report.reading import Reading
from tests.helpers import runs

STEPS = 40
PHASES = {"init": 1.0, "compile": 5.0, "step": 0.5}  # seconds; of steps, those of each


def loss(step: int) -> float:
    return 2.0 + 3.0 * 0.9**step


def row(step: int, **values) -> dict:
    seconds = {**PHASES, "step": step * PHASES["step"]}
    timed = {f"seconds_{name}": float(value) for name, value in seconds.items()}
    return {"step": step, **values, **timed}


def training_rows(num_steps: int = STEPS, factor: float = 1.0) -> list[dict]:
    return [
        row(
            step,
            loss=factor * loss(step),
            gradient_norm=1.0,
            learning_rate=1e-3,
            mean_depth=1.5 + 0.01 * step,
            tokens_kept=[1.0, 0.5],
            router_agreement=[1.0, 0.9],
            tokens_per_second=100.0,
            flops_utilization=0.3,
        )
        for step in range(1, num_steps + 1)
    ]


def validation_rows(num_steps: int = STEPS, factor: float = 1.0) -> list[dict]:
    return [
        row(
            step,
            validation_loss=factor * loss(step),
            validation_bits_per_byte=factor * loss(step) / np.log(2),
            validation_lens_loss=[loss(step) + 0.1, loss(step)],
        )
        for step in range(10, num_steps + 1, 10)
    ]


def write(workdir: pathlib.Path, rows: list[dict], code: int | None = 0, **sections) -> None:
    """Writes the directory of a run that has no checkpoint and no data.

    Args:
      workdir: the directory.
      rows: of metrics.jsonl.
      code: of its end; None if it has not ended.
      sections: of its configuration, as `runs.values` takes them.
    """
    (workdir / "tokenizer").mkdir(parents=True)
    ByteTokenizer().save(str(workdir / "tokenizer"))
    train = {"num_steps": STEPS} | sections.pop("train", {})
    depth = sections.pop("depth", "expert_choice")
    run = runs.tiny_run(workdir, depth, train=train, **sections)
    (workdir / "config.json").write_text(json.dumps(config.to_dict(run)))
    (workdir / "overrides.json").write_text(json.dumps({"train.num_steps": str(STEPS)}))
    (workdir / "metrics.jsonl").write_text("".join(map(jsonlines.line, rows)))
    sample = {"step": STEPS, "prompt": "red", "text": "red blue"}
    (workdir / "samples.jsonl").write_text(jsonlines.line(sample))
    if code is not None:
        end = {"code": code, "why": f"the reason of {code}", "time": 0}
        (workdir / "end.json").write_text(json.dumps(end))


def reading(has_choice: bool = True) -> Reading:
    """Returns what a model of two recursions might have made of a text of two rows."""
    text = "Red, blue 7.\nOne é"
    raw = np.frombuffer((text * 2).encode(), np.uint8)[:36].reshape(2, 18).astype(np.int32)
    pieces = [[chr(i) if i < 128 else "" for i in ids] for ids in raw]
    depth = 1 + (raw % 2 if has_choice else np.ones_like(raw))
    draws = np.random.default_rng(0)
    scores = np.stack([np.where(depth > 1, 1.0, -1.0), np.full(depth.shape, np.nan)])
    return Reading(
        step=STEPS,
        num_recursions=2,
        pieces=pieces,
        kinds=(raw % 5).astype(np.int32),
        counts=raw.astype(np.int64),
        is_of_training=True,
        tokens=raw,
        is_token=np.ones(raw.shape, bool),
        nats=draws.random(raw.shape),
        depth_used=depth.astype(np.int32),
        lens=draws.random((2, *raw.shape)),
        change=draws.random((1, *raw.shape)),
        scores=scores if has_choice else None,
        traces={} if has_choice else {"router": _trace(draws, raw.shape)},
        memories={} if has_choice else {"memory_keys": _memory(draws, raw.shape)},
    )


def _memory(draws: np.random.Generator, shape: tuple[int, int]) -> Memory:
    """Returns reads of two of nine values in two steps."""
    index = draws.random((2, *shape, 1, 9)).argsort(-1)[..., :2]
    return Memory(index, np.full(index.shape, 0.5, np.float32), 9)


def _trace(draws: np.random.Generator, shape: tuple[int, int]) -> Trace:
    """Returns choices of two of four experts in two steps."""
    order = draws.random((2, *shape, 1, 4)).argsort(-1)
    margin = draws.random((2, *shape, 1)).astype(np.float32)
    return Trace((order < 2).astype(np.uint8), margin, np.arange(2))
