"""A run's directory: its configuration, its data and what must match to go on."""

import json
import os
import pathlib
import shutil
from typing import Any

import jax

import recursia.config
from recursia import distributed, settings
from recursia.data import packing, prepare
from recursia.data.tokenizer import Tokenizer
from recursia.data.tokenizer import load as load_tokenizer
from recursia.errors import ConfigError, DataError

TOKENIZER, DATA = "tokenizer", "data"  # folders of a run's directory


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
        end_of_text=data.end_of_text,
    )
    return (str(workdir / "data"),)


def described(paths: tuple[str, ...], split: str) -> str:
    """Returns a line on what a run trains on or validates on: files, documents, tokens."""
    doing = {"train": "training on", "validation": "validating on"}[split]
    if not paths:
        return f"{doing} nothing: the data has no such split"
    told = []
    for path in paths:
        reader = packing.Reader(path)
        counts = reader.split(split)
        sources = reader.manifest.get("sources", [])
        # A file without a split of its own gave documents to both.
        files = [s["name"] for s in sources if s["split"] == split]
        files = files or [source["name"] for source in sources]
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        told.append(
            f"{named or path} ({counts['documents']:,} documents, {counts['tokens']:,} tokens)"
        )
    return f"{doing} {'; '.join(told)}"


def record(
    run: settings.Run, overrides: dict[str, str], tokenizer: Tokenizer, workdir: pathlib.Path
) -> None:
    """Writes what the directory needs to stand alone, besides checkpoints.

    That is config.json, every field resolved; overrides.json, what was typed; and tokenizer/.
    """
    part = workdir / f"{TOKENIZER}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    tokenizer.save(str(part))
    shutil.rmtree(workdir / TOKENIZER, ignore_errors=True)
    os.replace(part, workdir / TOKENIZER)
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
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return recursia.config.build(settings.Run, values, str(path))


def tokenizer(workdir: pathlib.Path, run: settings.Run) -> Tokenizer:
    """Returns the tokenizer that a run's directory holds.

    Of a directory written before it held one, the tokenizer of its data.

    Raises:
      DataError: if it is missing, broken, or not the one that was saved.
    """
    if (workdir / TOKENIZER).is_dir():
        return load_tokenizer(str(workdir / TOKENIZER))
    return packing.Reader((run.data.path or (str(workdir / DATA),))[0]).tokenizer


def check_tokenizer(workdir: pathlib.Path, run: settings.Run, ours: Tokenizer, who: str) -> None:
    """Compares a run's tokenizer with another by all that determines its ids, not by its size.

    Args:
      workdir: the run's directory.
      run: its settings.
      ours: the other.
      who: whose that is, for the message.

    Raises:
      DataError: if they differ.
    """
    theirs = tokenizer(workdir, run)
    if theirs.fingerprint != ours.fingerprint:
        raise DataError(
            f"{workdir} has the tokenizer {theirs.name}, {who} has {ours.name}: the same numbers "
            "are other words; take one of the same tokenizer"
        )


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
        "model": model,
        "data": {**data, **sees},
    }
