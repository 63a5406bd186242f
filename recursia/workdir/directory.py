"""A run's directory: its configuration, its data, and what a resumed run must share with it."""

import json
import os
import pathlib
from typing import Any

import jax

import recursia.config
from recursia import distributed, jsonfile, settings
from recursia.data import packing, prepare
from recursia.data.tokenizer import Tokenizer
from recursia.data.tokenizer import load as load_tokenizer
from recursia.errors import ConfigError, DataError, StorageError
from recursia.workdir import place

TOKENIZER, DATA = "tokenizer", "data"  # folders of a run's directory


def open_workdir(workdir: pathlib.Path) -> None:
    """Creates the directory if it does not exist.

    Raises:
      ConfigError: if it is not writable, or not shared by all processes.
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
            kind = StorageError if isinstance(error, StorageError) else ConfigError
            raise kind(f"--workdir={workdir}: cannot be written ({error.strerror})") from None
    if distributed.is_alone():
        return
    first = distributed.from_first(pid)
    with distributed.together():
        if not (workdir / f".writable-0-{first}").exists():
            raise ConfigError(
                f"--workdir={workdir}: lacks the file that process 0 wrote; give a directory that "
                "all processes share"
            )
    probe.unlink()


def data_directories(data: settings.Data, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the prepared directories of a run.

    The first process prepares text inside the workdir, once; the others must wait for it.
    """
    if data.path:
        return data.path
    if not distributed.is_first():
        return (str(workdir / DATA),)
    options = prepare.Options(
        tokenizer=data.tokenizer,
        validation=data.validation_text,
        validation_fraction=data.validation_fraction,
        on_error=data.on_error,
        end_of_text=data.end_of_text,
    )
    folder = workdir / DATA
    partial = place.of(folder).partial(folder)
    prepare.prepare(data.text, str(folder), options, partial_folder=partial)
    return (str(folder),)


def described(paths: tuple[str, ...], split: str) -> str:
    """Returns a line with the files, documents and tokens of a split."""
    doing = {"train": "training on", "validation": "validating on"}[split]
    if not paths:
        return f"{doing} nothing: the data has no such split"
    lines = []
    for path in paths:
        reader = packing.Reader(path)
        counts = reader.split(split)
        sources = reader.manifest.get("sources", [])
        # Without a validation file, both splits hold documents of the same files.
        files = [s["name"] for s in sources if s["split"] == split]
        files = files or [source["name"] for source in sources]
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        lines.append(
            f"{named or path} ({counts['documents']:,} document{'s' * (counts['documents'] != 1)}, "
            f"{counts['tokens']:,} tokens)"
        )
    return f"{doing} {'; '.join(lines)}"


def record(
    run: settings.Run, overrides: dict[str, str], tokenizer: Tokenizer, workdir: pathlib.Path
) -> None:
    """Writes config.json with every field, overrides.json with the typed ones, and tokenizer/.

    Raises:
      StorageError: if they cannot be written; what was there is whole.
    """
    try:
        place.of(workdir).fill(workdir / TOKENIZER, tokenizer.save)
        for name, values in (
            (recursia.config.RECORD, recursia.config.to_dict(run)),
            ("overrides.json", overrides),
        ):
            new = workdir / f"{name}.part"
            new.write_text(json.dumps(values, indent=2) + "\n")
            new.replace(workdir / name)
    except OSError as error:
        raise StorageError(f"{workdir}: cannot be written ({error.strerror})") from None


def is_run(workdir: pathlib.Path) -> bool:
    """Returns whether a directory holds the settings of a run, whole or damaged."""
    record = workdir / recursia.config.RECORD
    try:
        values = jsonfile.read(record)
    except (OSError, ValueError):
        return record.exists()
    return isinstance(values, dict) and "model" in values


def recorded(workdir: pathlib.Path) -> settings.Run:
    """Returns the settings of the run in a directory.

    Raises:
      ConfigError: if config.json is missing or not readable.
    """
    try:
        return recursia.config.recorded(workdir / recursia.config.RECORD)
    except FileNotFoundError:
        raise ConfigError(
            f"--workdir={workdir}: no config.json; is it a run's directory?"
        ) from None


def tokenizer(workdir: pathlib.Path, run: settings.Run) -> Tokenizer:
    """Returns the tokenizer of a run's directory, or of its data if an old version wrote it.

    Raises:
      DataError: if the tokenizer is missing, broken, or not the saved one.
    """
    if (workdir / TOKENIZER).is_dir():
        with place.of(workdir).near(workdir / TOKENIZER) as near:
            return load_tokenizer(str(near))
    return packing.Reader((run.data.path or (str(workdir / DATA),))[0]).tokenizer


def check_tokenizer(workdir: pathlib.Path, run: settings.Run, ours: Tokenizer, who: str) -> None:
    """Checks that a tokenizer gives the same token ids as a run's tokenizer.

    Args:
      workdir: the run's directory.
      run: its settings.
      ours: the tokenizer to compare.
      who: the owner of that tokenizer, for the message.

    Raises:
      DataError: if the fingerprints differ.
    """
    check_same(str(workdir), tokenizer(workdir, run), ours, who, str(workdir / TOKENIZER))


def check_same(place: str, theirs: Tokenizer, ours: Tokenizer, who: str, saved: str = "") -> None:
    """Checks that two tokenizers give the same token ids.

    Args:
      place: that has the one.
      theirs: the one.
      ours: the other.
      who: its owner, for the message.
      saved: where the one is saved; empty takes the place.

    Raises:
      DataError: if the fingerprints differ.
    """
    if theirs.fingerprint != ours.fingerprint:
        raise DataError(
            f"{place} has the tokenizer {theirs.name}, {who} has {ours.name}: the same token ids "
            f"stand for different text; prepare data with --tokenizer={saved or place}"
        )


def identity(run: settings.Run, vocab: int, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that a checkpoint and a run that resumes from it must share.

    Args:
      run: the settings.
      vocab: rows of the embedding.
      data: `Loader.identity` of the training data.
    """
    model = json.loads(json.dumps(recursia.config.to_dict(run.model))) | {"vocab_size": vocab}
    attention = {"cross_document_attention": run.data.cross_document_attention}
    return {"model": model, "data": {**data, **attention}}
