"""Sizes of kernels that were the fastest when measured: a file for each kind of device.

`DEVICE.json` here maps op, backend and shapes of the arrays to a `Config` of the kernel and to what
was measured. Lengths are rounded up to powers of two, so that one entry serves what is near. Where
there is no entry the kernel computes its sizes. `benchmarks/kernels.py --tune` writes the files.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

FOLDER = pathlib.Path(__file__).parent

C = TypeVar("C")


def path(device_kind: str) -> pathlib.Path:
    """Returns the file of a kind of device, such as "NVIDIA H100 80GB HBM3"."""
    return FOLDER / (re.sub(r"\W+", "_", device_kind.lower()) + ".json")


def shapes(arrays: Sequence[Any]) -> str:
    """Returns dtypes and shapes, such as "bfloat16[32,2048]", of lengths that are powers of two."""
    up = lambda length: 1 << max(length - 1, 0).bit_length()
    of = lambda x: f"{x.dtype}[{','.join(str(up(length)) for length in x.shape)}]"
    return " ".join(map(of, arrays))


@functools.cache
def table(file: pathlib.Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the entries of a file by op, backend and shapes; none if there is no file.

    Raises:
      ValueError: if the file is no such table.
    """
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        entries = [e for op in found.values() for kernel in op.values() for e in kernel.values()]
        if all(isinstance(entry, dict) and "config" in entry for entry in entries):
            return found
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{file}: no table of op, backend, shapes and config; delete or mend it")


def look_up(default: C, device_kind: str, op: str, backend: str, arrays: Sequence[Any]) -> C:
    """Returns the `Config` that was measured for a device and shapes, or else the default.

    Raises:
      ValueError: if the entry is no such `Config`.
    """
    file = path(device_kind)
    entry = table(file).get(op, {}).get(backend, {}).get(shapes(arrays))
    if entry is None:
        return default
    try:
        return read(type(default), entry["config"])
    except ValueError as error:
        raise ValueError(f"{file}: {op} {backend} {shapes(arrays)}: {error}") from None


def read(kind: type[C], fields: Any) -> C:
    """Returns the `Config` of these fields.

    Raises:
      ValueError: if a field is missing, unknown, no positive integer, or not one that it takes.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    if not isinstance(fields, dict) or sorted(fields) != sorted(names):
        raise ValueError(f"got {fields}, takes the fields {', '.join(names)}")
    for name, value in fields.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: got {value!r}, takes a positive integer")
    return kind(**fields)
