"""What was run: its configuration, what it costs, on what it ran, and where the time went."""

import dataclasses
import time

from recursia import budget
from recursia.report.panels import COLORS
from recursia.report.record import Record, described_data, differences, phases

_LATEST = 8  # incidents and samples that are shown
_PHASES = {
    "init": "before the first batch",
    "compile": "compilation",
    "data_wait": "waiting for data",
    "step": "training steps",
    "save": "saving",
    "eval": "validation and samples",
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the head of the page shows of a run.

    Attributes:
      facts: names and values.
      base: the configuration that it was started with; "" if that is unknown.
      changes: fields, their values there ("" if unknown), and in the run.
      phases: where the time went: name, seconds, share and colour.
      incidents: steps, and what was not accepted.
      samples: steps, prompts and texts of the last validation.
    """

    facts: list[tuple[str, str]]
    base: str
    changes: list[tuple[str, str, str]]
    phases: list[tuple[str, float, float, str]]
    incidents: list[tuple[int, str]]
    samples: list[tuple[int, str, str]]


def summary(record: Record) -> Summary:
    """Returns what was run."""
    base, changes = differences(record)
    facts = [*_model(record), *_training(record), *_machine(record)]
    facts += [_first(line) for line in described_data(record)]
    incidents = [
        (row["step"], f"{row.get('reason', '')} (policy {row.get('policy', 'unknown')})")
        for row in record.incidents[-_LATEST:]
    ]
    last = record.samples[-1]["step"] if record.samples else None
    samples = [
        (row["step"], str(row.get("prompt", "")), str(row["text"]))
        for row in record.samples
        if row["step"] == last
    ]
    return Summary(facts, base, changes, _phases(record), incidents, samples[:_LATEST])


def _first(line: str) -> tuple[str, str]:
    """Returns the first word of a line, and the rest."""
    word, _, rest = line.partition(" ")
    return word.rstrip(":"), rest


def _model(record: Record) -> list[tuple[str, str]]:
    model, cost = record.run.model, record.cost
    schedule = model.schedule
    shape = (
        f"{schedule.num_recursions} recursions of {schedule.num_blocks} blocks"
        if schedule.num_recursions > 1
        else f"{schedule.num_blocks} blocks, each applied once"
    )
    ends = sum(model.ends.values())
    own = " with a feed-forward of their own" if model.end_feedforward is not None else ""
    facts = [("model", f"{shape}, {ends} blocks outside them{own}" if ends else shape)]
    wide = f"{model.block.embed_dim}"
    outside = f" in the recursions, {model.end_block.embed_dim} outside them"
    facts.append(("width", wide + outside if model.is_resized else wide))
    if schedule.num_recursions > 1:
        facts.append(("depth policy", model.depth.kind.replace("_", " ")))
    if cost is None:
        return [*facts, ("parameters", "unknown: the run has no tokenizer yet")]
    many = budget.amount(cost.unique_parameters)
    if cost.applied_parameters != cost.unique_parameters:
        many += f" ({budget.amount(cost.applied_parameters)} if nothing were shared)"
    each = budget.amount(cost.training_flops_per_token)
    cache = budget.amount(cost.cache_bytes_per_token, is_bytes=True)
    facts += [("parameters", many), ("training FLOPs", f"{each} per token")]
    return [*facts, ("KV cache", f"{cache} per token of context")]


def _training(record: Record) -> list[tuple[str, str]]:
    train = record.run.train
    facts = [("batch", f"{train.batch_size:,} sequences of {train.seq_len:,} tokens")]
    tokens = record.step * record.tokens_per_step
    done = f"{record.step:,} of {train.num_steps:,} steps, {budget.amount(tokens)} tokens"
    if record.cost:
        done += f", {budget.amount(record.flops(record.step))} FLOPs"
    return [*facts, ("done", done)]


def _machine(record: Record) -> list[tuple[str, str]]:
    if not record.starts:
        return [("hardware", "not recorded: an older version began the run")]
    row = record.starts[-1]
    count, hosts = row.get("num_devices", 1), row.get("num_processes", 1)
    on = f"{count} x {row.get('device', 'unknown')}"
    on += f" in {hosts} processes" if hosts != 1 else ""
    facts = [
        ("hardware", on),
        ("software", f"recursia {row.get('recursia')}, jax {row.get('jax')}"),
    ]
    begun = record.starts[0].get("time")
    if isinstance(begun, int | float):
        facts.append(("begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begun))))
    return [*facts, ("starts", str(len(record.starts)))] if len(record.starts) > 1 else facts


def _phases(record: Record) -> list[tuple[str, float, float, str]]:
    """Returns the seconds of each phase of all processes of the run that wrote a row."""
    total: dict[str, float] = {}
    before: dict[str, float] = {}
    for row in sorted([*record.training, *record.validation], key=lambda row: row["step"]):
        if not (now := phases(row)):
            continue
        if sum(now.values()) < sum(before.values()):
            total = {name: total.get(name, 0.0) + seconds for name, seconds in before.items()}
        before = now
    for name, seconds in before.items():
        total[name] = total.get(name, 0.0) + seconds
    whole = sum(total.values())
    return [
        (_PHASES.get(name, name.replace("_", " ")), seconds, seconds / whole, COLORS[i])
        for i, (name, seconds) in enumerate(total.items())
        if seconds > 0 and i < len(COLORS)
    ]
