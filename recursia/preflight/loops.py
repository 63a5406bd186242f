"""Executions of each computation of a compiled program, with trip counts of loops.

XLA's own cost analysis counts a loop's body once. Here the executions of a computation are
multiplied by the trip counts of the loops around it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

from recursia.preflight.hlo import Computation, Instruction, Program

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
Affine = tuple[int | None, int]  # index of an element of a loop's carry, or None; and a constant


@dataclasses.dataclass(frozen=True)
class Run:
    """Executions of a computation.

    Attributes:
      times: per call of the program; every branch of a conditional counts as taken.
      is_fused: whether the computation is the body of a fusion.
      is_certain: False inside a loop of unknown trip count, which counts as one iteration.
    """

    times: int
    is_fused: bool
    is_certain: bool


def runs(program: Program) -> dict[str, Run]:
    """Returns the executions of each computation, summed over its callers."""
    total: dict[str, Run] = {}
    for name, times, is_fused, is_certain in _walk(program, program.entry, 1, False, True):
        old = total.get(name, Run(0, is_fused, True))
        total[name] = Run(old.times + times, is_fused, old.is_certain and is_certain)
    return total


def _walk(
    program: Program, name: str, times: int, is_fused: bool, is_certain: bool
) -> Iterator[tuple[str, int, bool, bool]]:
    yield name, times, is_fused, is_certain
    computation = program.computations[name]
    for line in computation.instructions.values():
        if line.opcode in ("async-update", "async-done"):  # repeat the calls of async-start
            continue
        trips = trip_count(program, computation, line) if line.opcode == "while" else 1
        inner = is_fused or line.opcode == "fusion"
        for called in (c for names in line.calls.values() for c in names):
            if called in program.computations:
                known = is_certain and trips is not None
                yield from _walk(program, called, times * (trips or 1), inner, known)


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """Returns the trip count of a loop, or None if it is not known from the program's text.

    The compiler may annotate it. TPU programs are not annotated: there the condition compares a
    counter with a bound, and the body adds a constant to the counter.
    """
    if annotated := _TRIPS.search(loop.attributes):
        return int(annotated[1])
    condition, body = (program.computations[loop.calls[name][0]] for name in ("condition", "body"))
    root = condition.instructions[condition.root]
    read: Callable[[str], Affine | None] = functools.partial(_affine, program, condition)
    if root.opcode == "fusion":
        fused = program.computations[root.calls["calls"][0]]
        read = functools.partial(_through, program, condition, root, fused)
        root = fused.instructions[fused.root]
    direction = re.search(r"direction=(\w+)", root.attributes)
    if root.opcode != "compare" or not direction:
        return None
    sides = [side for operand in root.operands if (side := read(operand)) is not None]
    if len(sides) != 2:
        return None
    return _iterations(program, caller, loop, body, sides, direction[1])


def _iterations(
    program: Program,
    caller: Computation,
    loop: Instruction,
    body: Computation,
    sides: list[Affine],
    direction: str,
) -> int | None:
    """Returns the iterations of a loop that runs while `sides[0] direction sides[1]`."""
    starts, steps = [], []
    for index, offset in sides:
        if index is None:
            starts.append(offset)
            steps.append(0)
            continue
        first = _element(program, caller, loop.operands[0], index)
        after = _element(program, body, body.root, index)
        if first is None or first[0] is not None or after is None or after[0] != index:
            return None
        starts.append(first[1] + offset)
        steps.append(after[1])
    gap, step = starts[1] - starts[0], steps[0] - steps[1]
    if direction in ("GT", "GE"):
        gap, step = -gap, -step
    if step <= 0 or direction not in ("LT", "LE", "GT", "GE", "NE"):
        return None
    return max(0, -(-(gap + (direction in ("LE", "GE"))) // step))


def _element(program: Program, computation: Computation, name: str, index: int) -> Affine | None:
    """Returns element `index` of a tuple as an affine function of the computation's parameter."""
    line = computation.instructions[name]
    if line.opcode == "tuple":
        return _affine(program, computation, line.operands[index])
    return (index, 0) if line.opcode == "parameter" else None


def _affine(program: Program, computation: Computation, name: str) -> Affine | None:
    """Returns an integer as an element of the computation's tuple parameter plus a constant."""
    line = computation.instructions[name]
    if line.opcode == "constant" and re.fullmatch(r"-?\d+", line.literal):
        return None, int(line.literal)
    if line.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        return _affine(program, computation, line.operands[0])
    if line.opcode == "get-tuple-element":
        index = re.search(r"index=(\d+)", line.attributes)
        return index and _element(program, computation, line.operands[0], int(index[1]))
    if line.opcode in ("add", "subtract"):
        left, right = (_affine(program, computation, operand) for operand in line.operands)
        if line.opcode == "subtract" and right is not None:
            right = None if right[0] is not None else (None, -right[1])
        return _sum(left, right)
    if line.opcode == "fusion" and "calls" in line.calls:
        fused = program.computations[line.calls["calls"][0]]
        return _through(program, computation, line, fused, fused.root)
    return None


def _through(
    program: Program,
    computation: Computation,
    fusion: Instruction,
    fused: Computation,
    name: str,
) -> Affine | None:
    """Returns as `_affine` an instruction inside a fusion, in terms of the fusion's operands."""
    line = fused.instructions[name]
    if line.opcode == "parameter":
        return _affine(program, computation, fusion.operands[int(line.literal)])
    if line.opcode == "constant":
        return _affine(program, fused, name)
    operands = [_through(program, computation, fusion, fused, each) for each in line.operands]
    if line.opcode == "add":
        return _sum(*operands)
    return operands[0] if line.opcode in ("bitcast", "copy", "convert") else None


def _sum(left: Affine | None, right: Affine | None) -> Affine | None:
    """Returns the sum of two integers, of which at most one may depend on the parameter."""
    if left is None or right is None or (left[0] is not None and right[0] is not None):
        return None
    return left[0] if left[0] is not None else right[0], left[1] + right[1]
