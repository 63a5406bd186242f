"""Bytes that a compiled program reads from and writes to a device's main memory.

What stands between two fusions passes through memory; what stands inside one does not, nor what
the compiler placed in a nearer memory (TPU's VMEM). An array of which a fusion takes or replaces a
slice counts as that slice. Caches are not known here, and a custom call counts its operands and
results once, so the time that follows is an estimate, not a bound.
"""

import re

from recursia.preflight import hlo, loops
from recursia.preflight.hlo import Computation, Instruction, Program

_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all domain "
    "partition-id replica-id opt-barrier add-dependency async-start async-update".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "reshape", "copy")


def hbm_bytes(program: Program) -> int:
    """Returns the bytes of one call on one device, loops included."""
    total = 0
    for name, run in loops.runs(program).items():
        if run.is_fused:
            continue
        computation = program.computations[name]
        each = computation.instructions.values()
        total += run.times * sum(_moved(program, computation, line) for line in each)
    return total


def _moved(program: Program, computation: Computation, each: Instruction) -> int:
    if each.opcode in _FREE or each.opcode.endswith("-done") or "AllocateBuffer" in each.attributes:
        return 0
    operands = [_far(computation.shape_of(name)) for name in each.operands]
    result = _far(each.shape)
    if each.opcode in _SLICES:
        return 2 * result
    if each.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if each.opcode == "scatter":
        return 2 * operands[-1] + sum(operands[1:-1])
    if each.opcode.endswith("-start"):  # gives its operands back beside what it makes
        return sum(operands) + (max(result - sum(operands), 0) or result)
    if each.opcode != "fusion":
        return sum(operands) + result
    inside = program.computations[each.calls["calls"][0]]
    pairs = zip(operands, inside.parameters, strict=True)
    return sum(_read(inside, size, par.name) for size, par in pairs) + _written(inside, each.shape)


def _far(shape: str) -> int:
    """Bytes of the arrays of a shape that lie in main memory."""
    return sum(size for size, layout in hlo.arrays(shape) if not re.search(r"S\([1-9]", layout))


def _read(inside: Computation, size: int, name: str) -> int:
    """Bytes that a fusion reads of an operand."""
    users = [i for i in inside.instructions.values() if name in i.operands]
    if not size or not users:
        return size
    read = 0
    for user in users:
        if user.opcode in _SLICES and user.operands[0] == name:
            read += hlo.num_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            read += 0
        elif user.opcode in _VIEWS:
            read += _read(inside, size, user.name)
        else:
            return size
    return min(read, size)


def _written(inside: Computation, shape: str) -> int:
    """Bytes that a fusion writes, given the shape of its result as seen from outside."""
    root = inside.instructions[inside.root]
    made = root.operands if root.opcode == "tuple" else (root.name,)
    places = hlo.arrays(shape)
    if len(places) != len(made):
        return _far(shape)
    total = 0
    for (size, layout), name in zip(places, made, strict=True):
        each = inside.instructions[name]
        while each.opcode in _VIEWS:
            each = inside.instructions[each.operands[0]]
        if each.opcode == "dynamic-update-slice":
            size = hlo.num_bytes(inside.shape_of(each.operands[1]))
        total += 0 if re.search(r"S\([1-9]", layout) else size
    return total
