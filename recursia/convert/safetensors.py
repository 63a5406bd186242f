"""Safetensors: arrays by name in one file or in several, read one by one and written so.

A file is the length of a header in eight bytes, the header in JSON (for each name dtype, shape and
place), and the arrays, one after the other. Nothing in it can be executed, and no array is read
before it is asked for: it is a view of the file.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from recursia import jsonfile
from recursia.errors import CheckpointError

INDEX, FILE = "model.safetensors.index.json", "model.safetensors"
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LONGEST = 100_000_000  # bytes of a header, as in the format's own reader
SHARD_BYTES = 4 << 30


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file, each a view of it.

    Attributes:
      metadata: what else the header says.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the header.

        Args:
          path: of a file.

        Raises:
          CheckpointError: if it is no such file, or cut short.
        """
        self._path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, _LONGEST):
                    raise CheckpointError(
                        f"{path}: is cut short or no safetensors file: it has {size} bytes, and "
                        f"its header would have {length}; fetch it again"
                    )
                header = json.loads(file.read(length))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path}: is no safetensors file: its header is not JSON; fetch it again"
            ) from None
        self._start, self._bytes = 8 + length, size - 8 - length
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: is no safetensors file: its header is no object")
        said = header.pop("__metadata__", None)
        self.metadata: dict[str, str] = said if isinstance(said, dict) else {}
        self._entries = {name: self._entry(name, entry) for name, entry in header.items()}

    def _entry(self, name: str, entry: Any) -> tuple[Any, tuple[int, ...], int]:
        """Returns dtype, shape and place of an array, checked."""
        try:
            kind, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
            first, end = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{self._path}: the header of {name} makes no sense") from None
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self._path}: {name} is of dtype {kind}, and {', '.join(DTYPES)} are read"
            )
        dtype = np.dtype(DTYPES[kind])
        if min(shape, default=0) < 0 or end - first != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"{self._path}: {name} of shape {shape} and {kind} has {end - first} bytes, takes "
                f"{math.prod(shape) * dtype.itemsize}"
            )
        if not 0 <= first <= end <= self._bytes:
            raise CheckpointError(
                f"{self._path}: is cut short: {name} ends at byte {end} of {self._bytes}; fetch it "
                "again"
            )
        return dtype, shape, first

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, first = self._entries[name]
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        count, place = math.prod(shape), self._start + first
        # A map from the file's start: places need not be multiples of a page or of an entry.
        size = count * dtype.itemsize
        try:
            raw = np.memmap(self._path, np.uint8, "r", place, (size,))
        except (OSError, ValueError):  # it has shrunk, or is gone
            end = f"{name} should end at byte {place + size}"
            raise CheckpointError(f"{self._path}: has changed: {end}; fetch it again") from None
        return np.frombuffer(raw, dtype, count).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Sharded(Mapping[str, np.ndarray]):
    """The arrays of several files, by the index that says which file has which.

    Attributes:
      metadata: what else the headers say.
    """

    def __init__(self, index: pathlib.Path):
        """Reads the index and the headers.

        Args:
          index: the path of `model.safetensors.index.json`.

        Raises:
          CheckpointError: if it or a file is missing or damaged, or lacks an array.
        """
        try:
            places = jsonfile.read(index, _LONGEST)["weight_map"]
            files = {str(name): str(file) for name, file in places.items()}
        except OSError as error:
            raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index}: has no weight_map; fetch it again") from None
        for file in files.values():
            if pathlib.PurePath(file).name != file:
                raise CheckpointError(f"{index}: names {file!r}, which is no file beside it")
        opened = {file: Arrays(index.parent / file) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in opened[file]:
                raise CheckpointError(f"{index}: {file} should hold {name}, and does not")
        self._places = {name: opened[file] for name, file in files.items()}
        self.metadata = {key: value for of in opened.values() for key, value in of.metadata.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._places[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read(folder: pathlib.Path) -> Arrays | Sharded:
    """Returns the arrays of a folder, from its one file or its index.

    Raises:
      CheckpointError: if it has neither, or they are damaged.
    """
    if (index := folder / INDEX).is_file():
        return Sharded(index)
    found = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: has {len(found)} safetensors files and no {INDEX}; takes {FILE} or an index"
        )
    return Arrays(found[0])


def write(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes float32 arrays into a folder: one file, or several with an index.

    Args:
      folder: that exists.
      shapes: of all arrays, by name, in the order in which they come.
      arrays: name and array, one after the other: none is kept.
      shard_bytes: of a file, at most, unless one array is larger.
    """
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and size + sum(sizes[each] for each in groups[-1]) > shard_bytes:
            groups.append([])
        groups[-1].append(name)
    count, coming = len(groups), iter(arrays)
    files = [
        FILE if count == 1 else f"model-{at:05}-of-{count:05}.safetensors"
        for at in range(1, count + 1)
    ]
    for file, names in zip(files, groups, strict=True):
        _write(folder / file, {name: shapes[name] for name in names}, coming)
    if count > 1:
        weights = {n: file for file, names in zip(files, groups, strict=True) for n in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weights}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write(
    path: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    coming: Iterator[tuple[str, np.ndarray]],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        end = place + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for wanted, shape in shapes.items():
            name, array = next(coming)
            if (name, array.shape) != (wanted, shape):
                raise ValueError(f"write: {name} of {array.shape} comes for {wanted} of {shape}.")
            file.write(np.ascontiguousarray(array, np.float32).tobytes())
