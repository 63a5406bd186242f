"""The results of a sweep's trials, read from their directories."""

import csv as csv_format
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from recursia import accounting, budget, config, console, jsonlines, settings, storage
from recursia.errors import StorageError, UserError
from recursia.sweep import directory, states
from recursia.sweep.directory import Sweep
from recursia.sweep.trial import Trial
from recursia.train.writer import METRICS
from recursia.workdir import directory as workdir

VALIDATION = "validation_loss"
# Metrics by the names that rows give them.
_LAST = {
    VALIDATION: VALIDATION,
    f"{VALIDATION}_causal": f"{VALIDATION}_causal",  # of models that look ahead as published
    "loss": "loss",
    "validation_bits_per_byte": "bits_per_byte",
}
_SECONDS = "seconds_"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a trial.

    Attributes:
      name: the trial's.
      state: one of `states.STATES`.
      config: its base.
      overrides: value by the full name of each field that the sweep sets.
      labels: of the trial.
      steps: that were done.
      tokens: of those steps.
      training_flops: of those steps, forward and backward, as `recursia budget` counts them; NaN if
        the base or the size of the vocabulary cannot be read.
      unique_parameters: entries of all banks and tables; 0 if those cannot be read.
      seconds: of all starts together.
      metrics: the last `validation_loss`, `validation_loss_causal`, `loss` (nats per token) and
        `bits_per_byte`, and `best_validation_loss`, as far as they are known.
      curve: steps with their validation losses, in order.
      why: of a trial that diverged or failed, in one line.
    """

    name: str
    state: str
    config: str
    overrides: dict[str, Any]
    labels: dict[str, Any]
    steps: int
    tokens: int
    training_flops: float
    unique_parameters: int
    seconds: float
    metrics: dict[str, float]
    curve: list[tuple[int, float]]
    why: str


def read(place: pathlib.Path) -> list[Result]:
    """Returns the results of the trials of a sweep's directory, in the order of declaration.

    Raises:
      ConfigError: if there is no sweep, or its files are not readable.
    """
    sweep, known = directory.read(place), {}
    with console.doing(f"reading {len(sweep.trials)} trials"):
        files = storage.at_once(lambda name: _read(sweep, name), sweep.trials)
        return [_result(each, known) for each in files]


class _Files(NamedTuple):
    """What the directory of a trial holds.

    Attributes:
      trial: what it is.
      state, why: see `states.of`.
      rows: of its metrics.
      run: the settings that it has recorded; None before it has started.
      vocab_size: of its tokenizer; None before it has one, 0 if that cannot be read.
    """

    trial: Trial
    state: str
    why: str
    rows: list[dict[str, Any]]
    run: settings.Run | None
    vocab_size: int | None


def _read(sweep: Sweep, name: str) -> _Files:
    folder = sweep.folder(name)
    try:
        run = config.recorded(folder / config.RECORD)
    except FileNotFoundError:
        run = None
    size = _vocab_size(folder, run) if run else None
    rows = list(jsonlines.rows(folder / METRICS))
    return _Files(sweep.trial(name), *states.of(folder), rows, run, size)


def _vocab_size(folder: pathlib.Path, run: settings.Run) -> int | None:
    if not (folder / workdir.TOKENIZER).is_dir():
        return None
    try:
        return workdir.tokenizer(folder, run).vocab_size
    except StorageError:
        raise
    except UserError:
        return 0


def _result(files: _Files, known: dict[Any, int]) -> Result:
    trial, rows, run = files.trial, files.rows, files.run or _base(files.trial)
    steps = max((row["step"] for row in rows), default=0)
    parameters, flops = _costs(run, files.vocab_size, steps, known) if run else (0, math.nan)
    scored = [(row["step"], jsonlines.number(row.get(VALIDATION))) for row in rows]
    curve = [(step, loss) for step, loss in scored if loss is not None]
    sequences = steps * run.train.batch_size if run else 0
    return Result(
        name=trial.name,
        state=files.state,
        config=trial.config,
        overrides=trial.overrides,
        labels=trial.labels,
        steps=steps,
        tokens=sequences * run.train.seq_len if run else 0,
        training_flops=flops,
        unique_parameters=parameters,
        seconds=_seconds(rows),
        metrics=_metrics(rows, curve),
        curve=curve,
        why=files.why,
    )


def _base(trial: Trial) -> settings.Run | None:
    """Returns the settings that a trial will have; None if its base is gone."""
    try:
        return trial.run()
    except UserError:
        return None


def _costs(
    run: settings.Run, vocab_size: int | None, steps: int, known: dict[Any, int]
) -> tuple[int, float]:
    """Returns the unique parameters, and the training FLOPs of the steps."""
    if vocab_size == 0:
        return 0, math.nan
    try:
        model = run.model.sized(budget.vocab_size(run, vocab_size))
    except UserError:
        return 0, math.nan
    if model not in known:
        known[model] = accounting.unique_parameters(model)
    return known[model], budget.spent(run, model.vocab_size, steps)


def _seconds(rows: list[dict[str, Any]]) -> float:
    """Returns the sum over all starts: a row counts the seconds since its start."""
    total = last = 0.0
    for row in rows:
        phases = [jsonlines.number(row[name]) or 0.0 for name in row if name.startswith(_SECONDS)]
        if phases:
            total += last if sum(phases) < last else 0.0
            last = sum(phases)
    return total + last


def _metrics(rows: list[dict[str, Any]], curve: list[tuple[int, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        numbers = {mine: jsonlines.number(row.get(name)) for name, mine in _LAST.items()}
        found |= {mine: value for mine, value in numbers.items() if value is not None}
    finite = [loss for _, loss in curve if math.isfinite(loss)]
    return {**found, f"best_{VALIDATION}": min(finite)} if finite else found


def ranked(results: Iterable[Result], metric: str) -> list[Result]:
    """Returns results by a metric, the least first; those without it come last, in their order."""
    value = lambda result: result.metrics.get(metric, math.nan)
    return sorted(results, key=lambda r: (not math.isfinite(value(r)), _finite(value(r))))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def flat(result: Result) -> Mapping[str, Any]:
    """Returns a result as one row, with columns `labels.NAME`, `config.FIELD` and metrics."""
    plain = dataclasses.asdict(result)
    nested = (plain.pop("labels"), plain.pop("overrides"), plain.pop("metrics"))
    labels, overrides, metrics = nested
    del plain["curve"]
    why = plain.pop("why")
    return {
        **plain,
        **{f"labels.{name}": value for name, value in labels.items()},
        **{f"config.{field}": value for field, value in overrides.items()},
        **metrics,
        "why": why,
    }


def csv(results: Iterable[Result]) -> str:
    """Returns results as CSV: a column for everything that one of them has, "" where it lacks."""
    rows = [flat(result) for result in results]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "why"))
    out = io.StringIO()
    writer = csv_format.DictWriter(out, [*names, "why"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
