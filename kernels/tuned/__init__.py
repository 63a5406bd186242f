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
        entries = (entry for op in found.values() for of in op.values() for entry in of.values())
        if all("config" in entry for entry in entries):
            return found
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{file}: no table of op, backend, shapes and config; delete or mend it")


def look_up(default: C, device_kind: str, op: str, backend: str, arrays: Sequence[Any]) -> C:
    """Returns the `Config` that was measured for a device and shapes, or else the default.

    Raises:
      ValueError: if the entry has other fields, or sizes that the kernel does not take.
    """
    fields = dataclasses.fields(default)  # pyright: ignore[reportArgumentType]
    file, names = path(device_kind), [field.name for field in fields]
    entry = table(file).get(op, {}).get(backend, {}).get(shapes(arrays))
    if entry is None:
        return default
    try:
        sizes = entry["config"]
        if not isinstance(sizes, dict) or sorted(sizes) != sorted(names):
            raise ValueError(f"got {sizes}, takes the fields {', '.join(names)}")
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name}: got {size!r}, takes a positive integer")
        return type(default)(**sizes)
    except ValueError as error:
        raise ValueError(f"{file}: {op} {backend} {shapes(arrays)}: {error}") from None
