"""New folders and files that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from recursia.errors import ConfigError, StorageError


@contextlib.contextmanager
def new_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder beside `place`, which becomes it when the block ends well.

    Raises:
      ConfigError: if something is there already, or it cannot be made.
      StorageError: if what is in it cannot be written.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"--output={place}: is there already; give a new directory")
    part = place.parent / f".{place.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output={place}: cannot be written ({error.strerror})") from None
    try:
        yield part
        if place.is_dir():
            place.rmdir()
        os.replace(part, place)
    except StorageError:
        raise
    except OSError as error:
        raise unwritten(f"--output={place}", error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def file(place: pathlib.Path, option: str) -> Iterator[pathlib.Path]:
    """Gives a file beside `place`, with its suffix, which replaces it when the block ends well.

    Args:
      place: of the file; what is no plain file, such as a pipe, is given itself.
      option: that names it, for the error.

    Raises:
      StorageError: if it cannot be written; what was there is whole.
    """
    is_plain = place.is_file() or not place.exists()
    part = place.with_name(f".{os.getpid()}.{place.name}") if is_plain else place
    try:
        yield part
        if is_plain:
            os.replace(part, place)
    except OSError as error:
        raise unwritten(f"--{option}={place}", error) from None
    finally:
        if is_plain:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def unwritten(what: str, error: OSError) -> StorageError:
    """Returns an error of one line that says why something cannot be written."""
    return StorageError(f"{what}: cannot be written ({error.strerror or error})")
