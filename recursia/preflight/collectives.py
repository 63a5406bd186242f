"""Collectives of a compiled program: kinds, bytes and executions.

The bytes of a collective are those of its operand on one device, or of an all-gather's result. The
bytes that a device must send are `Collective.sent`.
"""

import dataclasses
import math
import re

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
# Device ids 0, 1, ... in an array of a shape [4,2], perhaps transposed T(1,0).
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_GROUPED_IOTA = re.compile(rf"\[([\d,]+)\]<={_IOTA.pattern}")
_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?\](?:T\(.*?\))?)\))? \{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, or several equal ones.

    Attributes:
      kind: its HLO opcode.
      bytes: of one execution, as the module's docstring says.
      groups: devices that communicate with one another, by their index in the mesh.
      executions: per call of the program.
      is_certain: False inside a loop of unknown trip count, which counts as one iteration.
      source: the operation of the traced program that it implements, "" if unknown.
    """

    kind: str
    bytes: int
    groups: Groups
    executions: int
    is_certain: bool = True
    source: str = ""

    @property
    def group_size(self) -> int:
        """The number of devices in a group."""
        return max(map(len, self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that each device sends per execution, by a ring, which is the lower bound."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes if self.group_size > 1 else 0)
        others = (self.group_size - 1) / self.group_size
        return self.bytes * others * (2 if self.kind == "all-reduce" else 1)

    def axes(self, shape: dict[str, int]) -> tuple[str, ...]:
        """Returns the axes of a mesh along which the devices of a group differ."""
        coordinates = np.unravel_index(np.array(self.groups[0]), tuple(shape.values()))
        pairs = zip(shape, coordinates, strict=True)
        return tuple(axis for axis, indices in pairs if len(np.unique(indices)) > 1)


def collectives(program: Program) -> list[Collective]:
    """Returns the collectives of a program, equal ones merged, those that send the most first."""
    merged: dict[tuple[str, int, Groups, bool], Collective] = {}
    for name, run in loops.runs(program).items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            if (kind := _kind(computation, instruction)) is None or not run.times:
                continue
            groups = _groups(instruction.attributes, program.num_devices)
            size = sum(hlo.num_bytes(computation.shape_of(x)) for x in instruction.operands)
            if kind == "all-gather":
                size *= max(map(len, groups))
            op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
            source = op_name[1] if op_name else ""
            key = (kind, size, groups, run.is_certain)
            old = merged.get(key, Collective(kind, size, groups, 0, run.is_certain, source))
            executions = old.executions + run.times
            merged[key] = dataclasses.replace(old, executions=executions)
    return sorted(merged.values(), key=lambda c: -c.sent * c.executions)


def _kind(computation: Computation, instruction: Instruction) -> str | None:
    """Returns the kind of a collective; None for other instructions and for repeated ones."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # A TPU may overlap a collective with several fusions, each of which repeats it; it is counted
    # in the first, which starts it.
    if "chain_id=" in instruction.attributes and not _starts(computation):
        return None
    # A reduce-scatter of a TPU is a fusion of an all-reduce and a slice.
    is_scatter = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
    return "reduce-scatter" if is_scatter else kind


def _starts(computation: Computation) -> bool:
    return any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions.values())


def _groups(attributes: str, num_devices: int) -> Groups:
    """Returns the device groups of a collective, from any of the forms that HLO prints."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", attributes):
        return _cycles(_lists(pairs[1]))
    start = attributes.find("replica_groups=")
    text = attributes[start:].removeprefix("replica_groups=") if start >= 0 else ""
    if mesh := _MESH.match(text):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    if iota := _GROUPED_IOTA.match(text):
        return _rows(_iota(iota[2], iota[3]).reshape(_numbers(iota[1])))
    listed = re.match(r"\{((?:\{[\d,]+\},?)*)\}", text)
    groups = _lists(listed[1]) if listed else ()
    return groups or (tuple(range(num_devices)),)


def _mesh_groups(mesh: str, device_ids: str | None, axes: str) -> Groups:
    """Returns groups of devices along axes of a mesh.

    Args:
      mesh: axes and sizes, such as "'a'=4,'b'=2".
      device_ids: of the mesh, as an iota; None counts from 0.
      axes: of a group: "'a'" is an axis, and "'a':(2)4" a factor 4 of it, after a factor 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids and (iota := _IOTA.match(device_ids)):
        ids = _iota(iota[1], iota[2])
    shape: list[int] = []
    grouped: list[int] = []
    named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        factors = sorted((int(b), int(n)) for axis, b, n in named if axis == name and n)
        done = 1
        for before, count in factors:
            shape += [before // done, count]
            grouped.append(len(shape) - 1)
            done = before * count
        if not factors and any(axis == name for axis, *_ in named):
            grouped.append(len(shape))
        shape.append(size // done)
    ids = np.moveaxis(ids.reshape(shape), grouped, range(-len(grouped), 0)) if grouped else ids
    return _rows(ids.reshape(-1, math.prod(shape[axis] for axis in grouped)))


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _lists(text: str) -> Groups:
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids)


def _cycles(pairs: Groups) -> Groups:
    """Returns the connected components of pairs (sender, receiver)."""
    group = {device: {device} for pair in pairs for device in pair}
    for pair in pairs:
        joined = group[pair[0]] | group[pair[-1]]
        for device in joined:
            group[device] = joined
    return tuple(sorted({tuple(sorted(devices)) for devices in group.values()}))
