"""What a checkpoint and the run that resumes from it must share, compared field by field."""

import json
from typing import Any

import recursia.config
from recursia.architecture import Model
from recursia.errors import CheckpointError, ConfigError

_MAX_DIFFERENCES = 5  # in a message


def _completed(model: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved model with the fields that have been added since, at their defaults."""
    try:
        values = recursia.config.to_dict(recursia.config.build(Model, model, "model"))
    except ConfigError:  # it has fields that have been removed since
        return model
    return json.loads(json.dumps(values))


def same(meta: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Checks that the identity of a checkpoint is that of a run.

    Args:
      meta: of the checkpoint.
      wanted: the run's `directory.identity`.
      where: the start of the message.

    Raises:
      CheckpointError: with the kinds that differ, or else the fields, and both values of each.
    """
    meta = {**meta, "model": _completed(meta["model"])}
    saved, here = (_flat(identity["model"], "") for identity in (meta, wanted))
    differences = [
        f"{name} is {saved[name]} in its checkpoints, {here[name]} in this run"
        for name in saved
        if name.endswith(".kind") and name in here and here[name] != saved[name]
    ]
    if not differences:
        saved, here = (_flat(identity["model"], "model.") for identity in (meta, wanted))
        differences = _differences(saved, here) + _data_differences(meta["data"], wanted["data"])
        differences += _teacher_differences(meta, wanted)
    if differences:
        others = len(differences) - _MAX_DIFFERENCES
        more = f"; and {others} more" if others > 0 else ""
        raise CheckpointError(
            f"{where}: {'; '.join(differences[:_MAX_DIFFERENCES])}{more}; use another workdir, or "
            "the same configuration"
        )


def _data_differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each difference of the data; old checkpoints hold only a fingerprint."""
    name = "cross_document_attention"
    differences = _differences({f"data.{name}": saved[name]}, {f"data.{name}": here[name]})
    if saved["fingerprint"] == here["fingerprint"]:  # of the contents: file names may differ
        return differences
    common = [field for field in here if field in saved and field not in ("fingerprint", name)]
    section = lambda name: f"{'train' if name in ('seq_len', 'batch_size') else 'data'}.{name}"
    by_path = lambda data: {section(name): data[name] for name in common}
    return differences + (
        _differences(by_path(saved), by_path(here))
        or ["its checkpoints have seen other data (files, tokenizer, seq_len, batch_size or seed)"]
    )


def _teacher_differences(meta: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Returns a line if a teacher at the same place has other parameters than it had."""
    was, now = meta.get("teacher"), wanted.get("teacher")
    if not was or not now or was["path"] != now["path"] or was == now:
        return []
    return [f"{now['path']}, which it learns from, has other parameters than when this was saved"]


def _differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each field that differs."""
    return [
        f"{name} {saved.get(name)!r} in its checkpoints, {here.get(name)!r} in this run"
        for name in here | saved
        if saved.get(name) != here.get(name)
    ]


def _flat(section: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns the fields of nested sections, by dotted path."""
    fields = {}
    for name, value in section.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{path}{name}.")
        else:
            fields[f"{path}{name}"] = value
    return fields
