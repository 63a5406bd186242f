"""New folders that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from recursia.errors import ConfigError


@contextlib.contextmanager
def new_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder beside `place`, which becomes it when the block ends well.

    Raises:
      ConfigError: if something is there already, or it cannot be made.
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
    except OSError as error:
        raise ConfigError(f"--output={place}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
