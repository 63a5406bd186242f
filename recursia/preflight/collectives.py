"""What a compiled program moves between devices: which collectives, how large, how often.

Bytes are those of the whole array that one execution gathers, reduces, scatters, exchanges or
passes on, as one device sees it: of an all-gather the result, of the others the operand. What a
device must send for it at least is `Collective.sent`.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from recursia.preflight import hlo, loops
from recursia.preflight.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
Groups = tuple[tuple[int, ...], ...]
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program, or several alike.

    Attributes:
      kind: as HLO names it.
      bytes: of one execution, see the head of this file.
      groups: devices that take part together, by their place in the mesh.
      executions: per call of the program.
      is_certain: false inside a loop of unknown length, which counts as one step.
      source: the operation of the traced program that it comes from, where it is told.
    """

    kind: str
    bytes: int
    groups: Groups
    executions: int
    is_certain: bool = True
    source: str = ""

    @property
    def group_size(self) -> int:
        """The number of devices that take part together."""
        return max(map(len, self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that each device sends per execution: rings and their like, which none can beat."""
        others = (self.group_size - 1) / self.group_size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes if self.group_size > 1 else 0)
        return self.bytes * others * (2 if self.kind == "all-reduce" else 1)

    def axes(self, shape: dict[str, int]) -> tuple[str, ...]:
        """Returns the axes of a mesh along which the devices of a group differ."""
        places = np.array(np.unravel_index(np.array(self.groups[0]), tuple(shape.values())))
        return tuple(axis for axis, row in zip(shape, places, strict=True) if len(set(row)) > 1)


def collectives(program: Program) -> list[Collective]:
    """Returns the collectives of a program, those that are alike added up, the most bytes first."""
    found: dict[Any, Collective] = {}
    runs = loops.runs(program)
    for name, run in runs.items():
        computation = program.computations[name]
        for each in computation.instructions.values():
            if (kind := _kind(computation, each)) is None or not run.times:
                continue
            groups = _groups(each.attributes, program.num_devices)
            size = sum(hlo.num_bytes(computation.shape_of(part)) for part in each.operands)
            if kind == "all-gather":
                size *= max(map(len, groups))
            source = re.search(r'op_name="([^"]*)"', each.attributes)
            source = source[1] if source else ""
            key = (kind, size, groups, run.is_certain)
            old = found.get(key, Collective(kind, size, groups, 0, run.is_certain, source))
            times = old.executions + run.times
            found[key] = dataclasses.replace(old, executions=times)
    return sorted(found.values(), key=lambda each: -each.sent * each.executions)


def _kind(computation: Computation, each: Instruction) -> str | None:
    """Returns what an instruction does, or None if it is no collective or counted elsewhere."""
    kind = each.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # Where a TPU overlaps a collective with other fusions, each of them repeats it: the first one
    # starts it, and it counts there.
    if "chain_id=" in each.attributes and not _starts(computation):
        return None
    # A TPU reduces and keeps its slice in one fusion, whose inside is written as an all-reduce.
    is_scatter = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
    return "reduce-scatter" if is_scatter else kind


def _starts(computation: Computation) -> bool:
    return any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions.values())


def _groups(attributes: str, num_devices: int) -> Groups:
    """Returns the groups of devices of a collective, in any of the forms they are printed in."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", attributes):
        return _cycles(_lists(pairs[1]))
    start = attributes.find("replica_groups=")
    text = attributes[start:].removeprefix("replica_groups=") if start >= 0 else ""
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if iota := re.match(rf"\[([\d,]+)\]<={_IOTA}", text):
        return _rows(_iota(iota[2], iota[3]).reshape(_numbers(iota[1])))
    listed = re.match(r"\{((?:\{[\d,]+\},?)*)\}", text)
    groups = _lists(listed[1]) if listed else ()
    return groups or (tuple(range(num_devices)),)


def _mesh_groups(text: str) -> Groups:
    """Reads axes of a mesh, whole ('a') or a part of one ('a':(4)2, after the first 4 parts)."""
    text = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?\])(T\(.*?\))?\))? \{(.*?)\}", text)
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text[1])}
    ids = np.arange(int(np.prod([*sizes.values()])))
    if text[2]:
        layout = re.match(_IOTA, text[2] + (text[3] or ""))
        ids = _iota(layout[1], layout[2])
    shape, taken = [], []
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text[4])
    for name, size in sizes.items():
        cuts = [(int(b), int(n)) for axis, b, n in parts if axis == name and n]
        done = 1
        for before, count in sorted(cuts):
            shape += [before // done, count]
            taken.append(len(shape) - 1)
            done = before * count
        if not cuts and name in dict.fromkeys(axis for axis, *_ in parts):
            taken.append(len(shape))
        shape.append(size // done)
    ids = np.moveaxis(ids.reshape(shape), taken, range(-len(taken), 0)) if taken else ids
    count = int(np.prod([shape[axis] for axis in taken]))
    return _rows(ids.reshape(-1, count))


def _iota(sizes: str, order: str | None) -> np.ndarray:
    sizes = _numbers(sizes)
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _lists(text: str) -> Groups:
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids)


def _cycles(pairs: Groups) -> Groups:
    """Returns the sets of devices that pairs of sender and receiver link."""
    group = {device: {device} for pair in pairs for device in pair}
    for pair in pairs:
        joined = group[pair[0]] | group[pair[-1]]
        for device in joined:
            group[device] = joined
    return tuple(sorted({tuple(sorted(devices)) for devices in group.values()}))
