"""Small corpora: documents as a source reads them, prepared, and read back."""

from recursia.data import named
from recursia.data import prepare as prepare_lib
from recursia.data.packing import Reader


def read(path, on_error="stop", **how):
    """Returns the texts of a file's documents."""
    return [document.text for document in named.of(path).documents(on_error=on_error, **how)]


def prepare(inputs, output, num_workers=1, part=None, partial_folder="", **changed):
    """Prepares files as bytes, with three tenths held out unless options change; the manifest."""
    options = prepare_lib.Options(**({"tokenizer": "byte", "validation_fraction": 0.3} | changed))
    how = {"num_workers": num_workers, "part": part, "partial_folder": partial_folder}
    return prepare_lib.prepare(inputs, str(output), options, **how)


def texts(directory, split):
    """Returns the documents of a prepared split, decoded."""
    reader = Reader(str(directory))
    found = []
    for tokens, starts in zip(reader.tokens(split), reader.documents(split), strict=True):
        ends = [*starts[1:].tolist(), len(tokens)]
        found += [reader.tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
    return found
