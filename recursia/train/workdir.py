"""A run's directory: its configuration, its data and what must match to go on."""

import json
import os
import pathlib
from typing import Any

import jax

import recursia.config
from recursia import distributed, settings
from recursia.data import prepare
from recursia.errors import ConfigError, DataError


def open_workdir(workdir: pathlib.Path) -> None:
    """Makes the directory if it is not there.

    Raises:
      ConfigError: if it cannot be made or written, or is not one directory of all processes.
    """
    index, pid = (0 if distributed.is_first() else jax.process_index()), os.getpid()
    probe = workdir / f".writable-{index}-{pid}"
    with distributed.together():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            probe.touch()
            if distributed.is_alone():
                probe.unlink()
        except OSError as error:
            said = f"--workdir={workdir}: cannot be written ({error.strerror})"
            raise ConfigError(said) from None
    if distributed.is_alone():
        return
    first = distributed.from_first(pid)
    with distributed.together():
        if not (workdir / f".writable-0-{first}").exists():
            raise ConfigError(
                f"--workdir={workdir}: does not hold what process 0 wrote to it; give a directory "
                "that all processes share"
            )
    probe.unlink()


def data_directories(data: settings.Data, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the prepared directories of a run.

    The first process prepares text inside the workdir, once; the others must wait for it.
    """
    if data.path:
        return data.path
    if not distributed.is_first():
        return (str(workdir / "data"),)
    prepare.prepare(
        data.text,
        str(workdir / "data"),
        tokenizer=data.tokenizer,
        validation=data.validation_text,
        validation_fraction=data.validation_fraction,
        on_error=data.on_error,
        text_field=prepare.Options.text_field,
        shard_tokens=prepare.Options.shard_tokens,
    )
    return (str(workdir / "data"),)


def vocab_size(run: settings.Run, tokenizer_size: int) -> int:
    """Returns the rows of the embedding.

    Raises:
      DataError: if the tokenizer has more tokens than the model.
    """
    if 0 < run.model.vocab_size < tokenizer_size:
        raise DataError(
            f"config.model.vocab_size: the model has {run.model.vocab_size} tokens, the data's "
            f"tokenizer {tokenizer_size}; raise it, or set 0 to take the tokenizer's"
        )
    return run.model.vocab_size or tokenizer_size


def record(run: settings.Run, overrides: dict[str, str], workdir: pathlib.Path) -> None:
    """Writes config.json, every field resolved, and overrides.json, what was typed."""
    for name, values in (
        ("config.json", recursia.config.to_dict(run)),
        ("overrides.json", overrides),
    ):
        part = workdir / f"{name}.part"
        part.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(part, workdir / name)


def recorded(workdir: pathlib.Path) -> settings.Run:
    """Returns the run that a directory holds.

    Raises:
      ConfigError: if there is none, or its configuration cannot be read.
    """
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"--workdir={workdir}: no config.json; is it a run's directory?"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return recursia.config.build(settings.Run, values, str(path))


def identity(run: settings.Run, vocab: int, data: dict[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint and the run that goes on from it must share.

    Args:
      run: the settings.
      vocab: rows of the embedding.
      data: what determines the batches, as `Loader.identity` has it.
    """
    model = json.loads(json.dumps(recursia.config.to_dict(run.model))) | {"vocab_size": vocab}
    sees = {"cross_document_attention": run.data.cross_document_attention}
    return {
        "model": {k: value for k, value in model.items() if k not in settings.EXECUTION},
        "data": {**data, **sees},
    }
