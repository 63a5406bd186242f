"""The prepared text that a score is of: a run's validation split, or a file."""

import pathlib

from recursia.data import packing, prepare, source
from recursia.data.tokenizer import Tokenizer
from recursia.errors import DataError
from recursia.workdir import directory
from recursia.workdir.trained import Trained


def of_run(trained: Trained, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the directories of the run's data that have a validation split.

    Raises:
      DataError: if the data is no longer there, or of another tokenizer.
    """
    try:
        readers = [packing.Reader(path) for path in trained.paths]
    except DataError as error:
        raise DataError(f"{error}; to score a text of your own, give --text=FILE") from None
    for reader in readers:
        directory.check_tokenizer(workdir, trained.run, reader.tokenizer, reader.directory)
    return tuple(r.directory for r in readers if "validation" in r.manifest["splits"])


def of_file(text: str, tokenizer: Tokenizer, place: str) -> str:
    """Returns a prepared directory that holds a text file as its validation split."""
    output = str(pathlib.Path(place) / "text")
    with packing.Writer(output, tokenizer, 1 << 27) as writer:
        documents = source.of(text).documents(on_error="stop")
        for _ in prepare.pack(writer, tokenizer, (("validation", each) for each in documents)):
            pass
        writer.finish({})
    return output
