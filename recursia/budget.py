"""Costs of models side by side, and the training steps that make them equal."""

import dataclasses
import functools
import textwrap
from typing import Any, Literal

from recursia import accounting, fragments, kinds, model, settings, step_law
from recursia.architecture import Model
from recursia.data import packing, tokenizer
from recursia.errors import DataError
from recursia.notes import notes, programs

Match = Literal["none", "flops", "params", "cache"]
QUANTITIES = {"params": "unique_parameters", "cache": "cache_bytes_per_token"}
Row = dict[str, Any]  # a quantity's value by its name; `name` is the model's

# The base of a table's units, and the names of the units.
_DECIMAL = (1000, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"))
_BINARY = (1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
# Quantities that are shown if one of the models has some.
IF_ANY = (
    "making_flops",
    "teacher_flops_per_token",
    "exchanged_bytes_per_step",
    "gradient_bytes_per_step",
)
_ROUTED = ("expert_choice", "token_choice")  # kinds of depth for which `mor_` counts are shown
_NOTES = {
    "applied_": "parameters of the same model with nothing shared",
    "executed_": "with rematerialisation in the backward pass",
    "sixn_": "six for each unique parameter, forward and backward; it counts neither attention nor "
    "the reuse of weights",
    "teacher_": "forward pass of config.distill.teacher, and what learning from it adds, which no "
    "other number here counts",
    "making_": "products that make weights of their parts, once in a microbatch of any size",
    "step_law_": "peak learning rate for the parameters outside of the embedding, each counted "
    "once, or in each of its uses, and tokens of a step (arXiv 2503.04715), fitted without sharing",
    "exchanged_": "that each replica sends to the others, on average over steps",
    "gradient_": "that it would send if it averaged its float32 gradients with them in every step",
    "mor_": "as arXiv 2507.10524 counts: forward only, without embedding, head and router, with "
    "half of attention; the steps of its released runs follow from it",
}
_TOLD_IF_OTHER = {
    "applied_parameters": "unique_parameters",
    "matched_steps": "num_steps",
    "step_law_applied": "step_law_unique",
}
_FLOAT32 = 4  # bytes
_NAME_WIDTH = 14  # characters of a model's name in a table; four models fit 100 columns


def compare(runs: dict[str, settings.Run], match: Match) -> list[Row]:
    """Returns the costs of each run; the first run is the reference.

    Args:
      runs: by name, at least one.
      match: the quantity to be equal; "flops" adds the number of steps in which a run spends the
        reference's training FLOPs.

    Returns:
      For each run its `name`, the fields of `accounting.Budget` at its sequence length, and
        depth_kind, vocab_size, seq_len, num_steps: of the run.
        tokens_per_step: over all devices.
        step_law_unique, step_law_applied, step_law_tokens: see `recursia.step_law`.
        training_flops, mor_flops: of all its steps, exact and as `mor_flops_per_token` counts.
        exchanged_bytes_per_step, gradient_bytes_per_step: see `exchanged_bytes`, `gradient_bytes`.
        matched_steps, mor_matched_steps: steps that give the reference's total of each, rounded.
        matched_error, mor_matched_error: relative difference to the reference, of the FLOPs of
          matched steps, or of the quantity that `match` names.

    Raises:
      ConfigError: if the size of a vocabulary is unknown.
      DataError: if it has to be read from data that is not readable.
    """
    rows = [_row(name, run) for name, run in runs.items()]
    if match == "flops":
        for row in rows:
            for total, prefix in (("training_flops", ""), ("mor_flops", "mor_")):
                steps, error = matched_steps(rows[0][total], row[total], row["num_steps"])
                row |= {f"{prefix}matched_steps": steps, f"{prefix}matched_error": error}
    elif quantity := QUANTITIES.get(match):
        for row in rows:
            row["matched_error"] = row[quantity] / rows[0][quantity] - 1
    return rows


def _row(name: str, run: settings.Run) -> Row:
    config, train = run.model.sized(vocab_size(run)), run.train
    cost = accounting.budget(config, train.seq_len, train.rematerialisation, run.optimizer)
    tokens_per_step = train.batch_size * train.seq_len
    law = step_law.step_law(config, train.num_steps * tokens_per_step)
    return {
        "name": name,
        "depth_kind": kinds.kind_of(run.model.depth),
        **dataclasses.asdict(cost),
        "vocab_size": config.vocab_size,
        "seq_len": train.seq_len,
        "num_steps": train.num_steps,
        "tokens_per_step": tokens_per_step,
        "training_flops": training_flops(run),
        "mor_flops": train.num_steps * tokens_per_step * cost.mor_flops_per_token,
        "exchanged_bytes_per_step": exchanged_bytes(run, config),
        "gradient_bytes_per_step": gradient_bytes(run, config),
        "step_law_unique": law.unique.learning_rate,
        "step_law_applied": law.applied.learning_rate,
        "step_law_tokens": law.unique.batch_tokens,
        "notes": notes(run) + programs(run),
    }


def exchanged_bytes(run: settings.Run, config: Model) -> float:
    """Returns the bytes that a replica sends to the others in a step: the mean over steps."""
    how = run.replicas
    if not how.count:
        return 0.0
    specs = model.specs(config)
    parts = fragments.fragments(specs, run.optimizer.trains(specs), how.num_fragments)
    return (how.count - 1) * sum(how.sent(*part.size) for part in parts) / how.every_steps


def gradient_bytes(run: settings.Run, config: Model) -> float:
    """Returns the bytes of float32 gradients that the same devices would send without replicas."""
    count = max(run.replicas.count, 1)
    return 2 * (count - 1) / count * _FLOAT32 * accounting.unique_parameters(config)


def training_flops(run: settings.Run) -> float:
    """Returns the FLOPs of all steps of a run; raises what `compare` raises."""
    return spent(run, vocab_size(run), run.train.num_steps)


def spent(run: settings.Run, rows: int, step: int) -> float:
    """Returns the training FLOPs of a run until a step, whose phases may differ in depth.

    Args:
      run: its settings.
      rows: of its embedding.
      step: the last that counts.
    """
    total, start = 0, 0
    for end, depth, how in run.train.phases():
        steps = max(min(end, step) - start, 0)
        total += steps * run.train.batch_size * _sequence_flops(run, rows, depth, how)
        start = end
    return total


@functools.lru_cache(maxsize=256)
def _sequence_flops(run: settings.Run, rows: int, depth: int | None, how: str | None) -> float:
    config = run.model.sized(rows).in_phase(depth, how)
    return accounting.training_flops(config, run.train.seq_len)


def matched_steps(target: float, total: float, num_steps: int) -> tuple[int, float]:
    """Returns the steps that cost `target` if `num_steps` cost `total`, and the relative error."""
    steps = max(1, round(target * num_steps / total))
    return steps, steps * total / (num_steps * target) - 1


def vocab_size(run: settings.Run, tokenizer_size: int | None = None) -> int:
    """Returns the rows of a run's embedding: as configured, or its tokenizer's.

    Args:
      run: its settings.
      tokenizer_size: tokens of the data's tokenizer; None looks them up if needed.

    Raises:
      ConfigError: for a "bpe:N" without a number.
      DataError: if the prepared data or the tokenizer's file cannot be read, or the tokenizer has
        more tokens than the model.
    """
    rows = run.model.vocab_size
    if tokenizer_size is None:
        return rows or _tokenizer_size(run.data)
    if 0 < rows < tokenizer_size:
        raise DataError(
            f"config.model.vocab_size: the model has {rows} tokens, the data's tokenizer "
            f"{tokenizer_size}; raise it, or set 0 to take the tokenizer's"
        )
    return rows or tokenizer_size


def _tokenizer_size(data: settings.Data) -> int:
    if data.path:
        return packing.Reader(data.path[0]).vocab_size
    if data.tokenizer.startswith("bpe:"):
        return tokenizer.bpe_size(data.tokenizer)
    return tokenizer.from_spec(data.tokenizer, lambda: iter(()), data.end_of_text).vocab_size


def render(rows: list[Row]) -> str:
    """Returns the rows of `compare` as a text table, with a column for each model, and notes.

    Quantities that tell nothing about any of the models are omitted.
    """
    names = [row["name"] for row in rows]
    names = [n if len(n) <= _NAME_WIDTH else f"…{n[1 - _NAME_WIDTH :]}" for n in names]
    table, keys = [["", *names]], [key for key in rows[0] if _applies(key, rows)]
    for key in keys:
        label = key.replace("_", " ").replace("sixn", "6N")
        table.append([label, *(_shown(key, row[key]) for row in rows)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for label, *cells in table:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells]))
    lines.append("")
    for prefix, note in _NOTES.items():
        if any(key.startswith(prefix) for key in keys):
            named = f"{prefix[:-1].replace('sixn', '6N')}: {note}."
            lines += textwrap.wrap(named, 100, subsequent_indent="  ")
    for row in rows:
        for note in row["notes"]:
            lines += textwrap.wrap(f"{row['name']}: {note}.", 100, subsequent_indent="  ")
    return "\n".join(lines)


def _applies(key: str, rows: list[Row]) -> bool:
    """Returns whether a quantity tells something about at least one of the models."""
    if key in ("name", "depth_kind", "notes"):
        return False
    if key.startswith("mor_"):
        return any(row["depth_kind"] in _ROUTED for row in rows)
    if key in IF_ANY:
        return any(row[key] for row in rows)
    if key == "mean_depth":
        return any(row[key] != 1 for row in rows)
    same_as = _TOLD_IF_OTHER.get(key)
    return same_as is None or any(row[key] != row[same_as] for row in rows)


def _shown(key: str, value: float) -> str:
    if key.endswith("error"):
        return f"{value:+.1e}" if value else "0"
    if key == "mean_depth":
        return f"{value:.3f}"
    if key in ("step_law_unique", "step_law_applied"):
        return f"{value:.2e}"
    if key.endswith(("steps", "size", "len")):
        return f"{value:,}"
    return amount(value, is_bytes="bytes" in key)


def amount(value: float, is_bytes: bool = False) -> str:
    """Returns a number in four digits with its unit: 12.35 M, or 3.000 KiB."""
    base, units = _BINARY if is_bytes else _DECIMAL
    scale = 0
    while abs(value) >= 0.9995 * base and scale < len(units) - 1:
        value, scale = value / base, scale + 1
    return f"{value:#.4g}".rstrip(".") + f" {units[scale]}".rstrip()
