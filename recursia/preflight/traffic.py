"""Bytes that a compiled program reads from and writes to HBM.

The operands and results of a fusion pass through HBM; intermediates inside it do not, nor arrays
that the compiler placed in a nearer memory (VMEM of a TPU). If a fusion reads or updates a slice of
an array, only the slice counts. Caches are not modelled, and a custom call counts its operands and
results once, so the resulting time is an estimate, not a bound.
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
    """Returns the bytes of one call on one device, with the trip counts of loops."""
    total = 0
    for name, run in loops.runs(program).items():
        if run.is_fused:
            continue
        computation = program.computations[name]
        lines = computation.instructions.values()
        total += run.times * sum(_moved(program, computation, line) for line in lines)
    return total


def _moved(program: Program, computation: Computation, line: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes."""
    if line.opcode in _FREE or line.opcode.endswith("-done") or "AllocateBuffer" in line.attributes:
        return 0
    operands = [_hbm_bytes(computation.shape_of(name)) for name in line.operands]
    result = _hbm_bytes(line.shape)
    if line.opcode in _SLICES:
        return 2 * result
    if line.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if line.opcode == "scatter":
        return 2 * operands[-1] + sum(operands[1:-1])
    if line.opcode.endswith("-start"):  # its result holds its operands too
        return sum(operands) + (max(result - sum(operands), 0) or result)
    if line.opcode != "fusion":
        return sum(operands) + result
    fused = program.computations[line.calls["calls"][0]]
    pairs = zip(operands, fused.parameters, strict=True)
    return sum(_read(fused, size, par.name) for size, par in pairs) + _written(fused, line.shape)


def _hbm_bytes(shape: str) -> int:
    """Returns the bytes of the arrays of a shape that lie in HBM."""
    return sum(size for size, layout in hlo.arrays(shape) if not re.search(r"S\([1-9]", layout))


def _read(fused: Computation, size: int, name: str) -> int:
    """Returns the bytes that a fusion reads of an operand."""
    users = [line for line in fused.instructions.values() if name in line.operands]
    if not size or not users:
        return size
    read = 0
    for user in users:
        if user.opcode in _SLICES and user.operands[0] == name:
            read += hlo.num_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            read += 0
        elif user.opcode in _VIEWS:
            read += _read(fused, size, user.name)
        else:
            return size
    return min(read, size)


def _written(fused: Computation, shape: str) -> int:
    """Returns the bytes that a fusion writes, given the shape of its result in its caller."""
    root = fused.instructions[fused.root]
    results = root.operands if root.opcode == "tuple" else (root.name,)
    arrays = hlo.arrays(shape)
    if len(arrays) != len(results):
        return _hbm_bytes(shape)
    total = 0
    for (size, layout), name in zip(arrays, results, strict=True):
        line = fused.instructions[name]
        while line.opcode in _VIEWS:
            line = fused.instructions[line.operands[0]]
        if line.opcode == "dynamic-update-slice":
            size = hlo.num_bytes(fused.shape_of(line.operands[1]))
        total += 0 if re.search(r"S\([1-9]", layout) else size
    return total
