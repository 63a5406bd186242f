"""The text to score: a run's validation split, or a file."""

import pathlib
from collections.abc import Collection, Iterable

from recursia import distributed
from recursia.data import named, packing, source, verification
from recursia.data.tokenising import tokenise
from recursia.data.tokenizer import Tokenizer
from recursia.errors import DataError
from recursia.workdir import directory
from recursia.workdir.trained import Trained


def of_run(trained: Trained, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the directories of the run's data that have a validation split.

    Raises:
      DataError: if the data is missing, or was prepared with another tokenizer.
    """
    try:
        readers = [packing.Reader(path) for path in trained.paths]
    except DataError as error:
        why = str(error).rstrip(".")
        raise DataError(f"{why}, or score another text with --text=FILE") from None
    for reader in readers:
        directory.check_tokenizer(workdir, trained.run, reader.tokenizer, reader.directory)
    return tuple(r.directory for r in readers if "validation" in r.manifest["splits"])


def check(trained: Trained, workdir: pathlib.Path, splits: Collection[str]) -> None:
    """Checks that the files of a run's data are whole; all processes must call it.

    Args:
      trained: a checkpoint of the run; one from elsewhere has no data.
      workdir: the run's directory.
      splits: that are to be read; without any, the data need not be there.

    Raises:
      DataError: with the first file whose bytes have changed.
    """
    with distributed.together():
        if distributed.is_first() and trained.paths and splits:
            verification.checked(trained.paths, workdir / verification.FILE, splits)


def of_file(text: str, tokenizer: Tokenizer, folder: str) -> str:
    """Prepares a text file as a validation split inside a folder; returns its directory."""
    return of_documents(named.of(text).documents(on_error="stop"), tokenizer, folder)


def of_documents(documents: Iterable[source.Document], tokenizer: Tokenizer, folder: str) -> str:
    """Prepares documents as a validation split inside a folder; returns its directory."""
    output = str(pathlib.Path(folder) / "text")
    with packing.Writer(output, tokenizer, 1 << 27) as writer:
        labelled = (("validation", document) for document in documents)
        for _ in tokenise(writer, tokenizer, labelled):
            pass
        writer.finish({})
    return output
