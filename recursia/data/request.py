"""What to prepare: files and options, and whether a folder already holds their result."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from recursia import buckets, console
from recursia.data import named, packing, source
from recursia.data.manifest import Manifest, SourceEntry
from recursia.data.tokenizer import Tokenizer
from recursia.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prepare; the one place where the defaults are.

    Attributes:
      tokenizer: what `recursia.data.tokenizer.from_spec` takes. "bpe:N" learns from the training
        split only.
      validation: files of the validation split, as `recursia.data.named.expand` takes them.
      validation_fraction: without such files, the share of the documents to hold out, in [0, 1);
        0 makes no validation split. See `recursia.data.held_out.moved`.
      on_error: "stop" at a broken document, or "skip" it.
      text_field: key of the text in a JSON line, or its column in a table.
      shard_tokens: most tokens in a shard, unless a single document is longer.
      end_of_text: name of the token that ends a text, in the file of a tokenizer; empty looks for
        the usual ones.
    """

    tokenizer: str = "bpe:4096"
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.01
    on_error: source.OnError = "stop"
    text_field: str = "text"
    shard_tokens: int = 1 << 27
    end_of_text: str = ""

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"validation_fraction is {self.validation_fraction} but must be in [0, 1); "
                "give the share of the documents to hold out."
            )
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {self.on_error!r} but must be 'stop' or 'skip'.")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens} but must be at least 1 token.")


@dataclasses.dataclass(frozen=True)
class Request:
    """The files of one preparation, by the split they are named for, and its options."""

    files: dict[str, tuple[source.Source, ...]]
    options: Options

    @property
    def fraction(self) -> float | None:
        """The `held_out.Rule.fraction` of the request."""
        return None if self.files["validation"] else self.options.validation_fraction

    def recorded(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Returns what the manifest says of the options.

        Args:
          tokenizer: that of the options; None if it is yet to be learned from the documents.
        """
        options = dataclasses.asdict(self.options)
        del options["validation"], options["end_of_text"]  # sources and tokenizer determine these
        if tokenizer is not None:
            options["tokenizer"] = tokenizer.fingerprint
        return options

    def sources(self) -> list[SourceEntry]:
        """Returns what the manifest says of the files: names and digests, but no paths."""
        size = sum(file.size for files in self.files.values() for file in files)
        with console.bar("digesting", size) as advance:
            return [
                {"split": split, "name": file.name, "sha256": file.fingerprint(advance)}
                for split, files in self.files.items()
                for file in files
            ]


def request(inputs: Sequence[str], options: Options) -> Request:
    """Returns the request for the files that `inputs` and `options.validation` name.

    Raises:
      DataError: if there is no input file, or a file is named for both splits.
    """
    train, validation = named.expand(inputs), named.expand(options.validation)
    if not train:
        raise DataError("prepare: 0 input files; give at least 1.")
    held_out = {file.real for file in validation}
    for file in train:
        if file.real in held_out:
            raise DataError(
                f"{file.path}: named 2 times, for training and for validation; leave it out of one."
            )
    return Request({"train": train, "validation": validation}, options)


def finished(output: str, asked: Request, options: Mapping[str, Any]) -> Manifest | None:
    """Returns the manifest of `output` if it was made by the same request, None if it is absent.

    Args:
      output: the folder.
      asked: the request.
      options: its `recorded`.

    Raises:
      DataError: if `output` holds anything else.
    """
    if not buckets.is_place(output) and os.path.islink(output):
        raise DataError(f"{output}: is a link that leads back to itself; give another output.")
    place = buckets.path(output)
    if not place.exists():
        return None
    if not place.is_dir():
        raise DataError(f"{output}: is a file, not a folder; give another output.")
    names = {each.name for each in place.iterdir()}
    if not names or (buckets.is_place(output) and "manifest.json" not in names):
        return None  # or another process has begun to upload it
    contents = "not prepared data"
    if "manifest.json" in names:
        manifest = packing.Reader(output).manifest
        record = {"options": options, "sources": asked.sources()}
        if not (differences := differing(manifest, record)):
            return manifest
        contents = f"prepared with other {', '.join(differences)}"
    raise DataError(
        f"{output}: holds {len(names)} entries, {contents}; give another output, or remove what it "
        "holds."
    )


def differing(manifest: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns, in words, the options and sources of `record` that the manifest has not."""
    old, new = manifest.get("options"), record["options"]
    old = old if isinstance(old, dict) else {}
    differences = [
        f"{name} ({old.get(name)!r:.20}, now {new[name]!r:.20})"
        for name in new
        if old.get(name) != new[name]
    ]
    old, new = manifest.get("sources"), record["sources"]
    if old == new:
        return differences
    known = {json.dumps(entry) for entry in old} if isinstance(old, list) else set()
    names = [entry["name"] for entry in new if json.dumps(entry) not in known]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [*differences, f"sources ({', '.join(names[:3]) or 'fewer, or another order'}{more})"]
