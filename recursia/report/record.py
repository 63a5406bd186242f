"""What a run's directory says of its training, as curves over steps, tokens, FLOPs and time."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from recursia import accounting, budget, config, jsonfile, jsonlines, presets, settings
from recursia.accounting import Budget
from recursia.data import packing
from recursia.errors import ConfigError, DataError, UserError
from recursia.workdir import directory, ending, place, starts

METRICS, SAMPLES, INCIDENTS = "metrics.jsonl", "samples.jsonl", "incidents.jsonl"
LENGTHS = ("steps", "tokens", "FLOPs", "hours")  # what a curve can be drawn against
_LOSS, _VALIDATION = "loss", "validation_loss"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
    """A run, as its files tell it.

    Attributes:
      name: that tells it from the other runs of the report.
      workdir: its directory.
      run: its settings.
      overrides: the fields that were typed.
      training: rows of training steps, by step; a number that is not finite is left out.
      validation: rows of validations, by step.
      samples: texts, with their steps and prompts.
      incidents: losses and gradients that were not accepted.
      starts: see `workdir.starts`.
      ended: exit code and message, if the run ended.
      is_live: whether a process trains it.
    """

    name: str
    workdir: pathlib.Path
    run: settings.Run
    overrides: dict[str, Any]
    training: list[Row]
    validation: list[Row]
    samples: list[Row]
    incidents: list[Row]
    starts: list[Row]
    ended: tuple[int, str] | None
    is_live: bool

    @property
    def step(self) -> int:
        """The last step with a row; 0 without one."""
        return max((row["step"] for row in (*self.training, *self.validation)), default=0)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.run.train.batch_size * self.run.train.seq_len

    @functools.cached_property
    def vocab_size(self) -> int | None:
        """Rows of the embedding; None where neither settings nor a tokenizer say so."""
        try:
            words = directory.tokenizer(self.workdir, self.run).vocab_size
            return budget.vocab_size(self.run, words)
        except UserError:
            return self.run.model.vocab_size or None

    @functools.cached_property
    def cost(self) -> Budget | None:
        """What the model costs; None if the size of its vocabulary is not known."""
        if self.vocab_size is None:
            return None
        train = self.run.train
        sized = self.run.model.sized(self.vocab_size)
        return accounting.budget(sized, train.seq_len, train.rematerialisation, self.run.optimizer)

    @functools.cached_property
    def tokens_per_byte(self) -> float | None:
        """Tokens for each byte of the validation text; None without a validation."""
        for row in reversed(self.validation):
            nats, bits = row.get(_VALIDATION), row.get("validation_bits_per_byte")
            if nats and bits:
                return bits * math.log(2) / nats
        return None

    def flops(self, step: int) -> float:
        """Returns the training FLOPs until a step; NaN if the vocabulary is unknown."""
        if self.vocab_size is None:
            return math.nan
        return budget.spent(self.run, self.vocab_size, step)

    def lengths(self, rows: Sequence[Row]) -> dict[str, list[float]]:
        """Returns how far training was at each row, by the names of `LENGTHS`."""
        steps = [row["step"] for row in rows]
        tokens = [step * self.tokens_per_step for step in steps]
        flops = list(map(self.flops, steps))
        hours = [self._seconds.get(step, math.nan) / 3600 for step in steps]
        values = steps, tokens, flops, hours
        return dict(zip(LENGTHS, values, strict=True))

    @functools.cached_property
    def _seconds(self) -> dict[int, float]:
        """Seconds of all processes until each step; those of a process start at 0."""
        found, before, last = {}, 0.0, 0.0
        for row in sorted([*self.training, *self.validation], key=lambda row: row["step"]):
            if now := sum(phases(row).values()):
                if now < last:
                    before += last
                last = now
                found[row["step"]] = before + now
        return found


def phases(row: Row) -> dict[str, float]:
    """Returns the seconds of each phase of a process until a row."""
    prefix = "seconds_"
    named = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
    return {name: value for name, value in named.items() if isinstance(value, float)}


def read(workdirs: Sequence[pathlib.Path]) -> list[Record]:
    """Returns the records of some runs, with names that differ.

    Raises:
      ConfigError: if one is no run's directory, or is given twice.
    """
    if len(set(workdirs)) < len(workdirs):
        twice = next(each for each in workdirs if list(workdirs).count(each) > 1)
        raise ConfigError(f"--compare={twice}: is given twice; leave one out")
    return [_read(each, name) for each, name in zip(workdirs, _names(workdirs), strict=True)]


def _read(workdir: pathlib.Path, name: str) -> Record:
    if not workdir.is_dir():
        raise ConfigError(f"{workdir}: is not there; give a run's directory")
    run = directory.recorded(workdir)
    rows = list(_rows(workdir / METRICS))
    samples = [row for row in _rows(workdir / SAMPLES, is_text=True) if "text" in row]
    return Record(
        name,
        workdir,
        run,
        _overrides(workdir),
        _by_step(row for row in rows if _LOSS in row),
        _by_step(row for row in rows if _VALIDATION in row),
        samples,
        list(_rows(workdir / INCIDENTS, is_text=True)),
        starts.read(workdir),
        ending.read(workdir),
        place.of(workdir).is_live(workdir),
    )


def described_data(record: Record) -> list[str]:
    """Returns a line for each split of the run's data, or why there is none."""
    paths = record.run.data.path or (str(record.workdir / directory.DATA),)
    lines = []
    for split in ("train", "validation"):
        try:
            here = [p for p in paths if split in packing.Reader(p).manifest["splits"]]
            lines.append(directory.described(tuple(here), split))
        except (DataError, OSError) as error:
            return [*lines, f"data: {error}"]
    return lines


def _names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Returns the last folders of directories, as many as tell them apart."""
    for count in range(1, 1 + max(len(each.parts) for each in workdirs)):
        names = ["/".join(each.parts[-count:]) for each in workdirs]
        if len(set(names)) == len(names):
            return names
    return list(map(str, workdirs))


def _overrides(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        found = jsonfile.read(workdir / "overrides.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(path: pathlib.Path, is_text: bool = False) -> Iterable[Row]:
    """Yields rows with a step; unless they are texts, numbers and lists of numbers alone."""
    for row in jsonlines.rows(path):
        yield row if is_text else {"step": row["step"], **_numbers(row)}


def _numbers(row: Row) -> Row:
    found = {name: _number(value) for name, value in row.items() if name != "step"}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | list[float] | None:
    if isinstance(value, list):
        entries = [_number(each) for each in value]
        kept = [each for each in entries if isinstance(each, float)]
        return kept if kept and len(kept) == len(entries) else None
    found = jsonlines.number(value)
    return found if found is not None and abs(found) <= 1e300 else None


def _by_step(rows: Iterable[Row]) -> list[Row]:
    """Returns rows in the order of their steps; of two of one step, the later one."""
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def differences(record: Record) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns the configuration that a run was started with, and the fields that differ from it.

    Only a shipped configuration is read: another one is a program, and whoever made the directory
    may have written its name.

    Returns:
      The name of the configuration, "" if it is unknown or not shipped; and for each field its
      name, its value in the configuration ("" if unknown), and in the run. Without a name, the
      fields are those that were typed.
    """
    name = str(record.starts[-1].get("config", "")) if record.starts else ""
    try:
        is_known = bool(name) and presets.is_shipped(name)
        base = _flat(config.to_dict(config.load(name, {}))) if is_known else {}
    except (UserError, OSError, ValueError):
        base = {}
    if not base:
        return "", [(key, "", str(value)) for key, value in record.overrides.items()]
    ours = _flat(config.to_dict(record.run))
    changed = [key for key in {**base, **ours} if base.get(key) != ours.get(key)]
    shown = lambda values, key: str(values[key]) if key in values else ""
    return name, [(key, shown(base, key), shown(ours, key)) for key in changed]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.")
    return found
