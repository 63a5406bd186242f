"""How often each computation of a compiled program runs.

XLA's own counts take a loop's body once, whatever the number of its steps. Here each computation is
multiplied by the steps of the loops around it.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from recursia.preflight.hlo import Computation, Instruction, Program

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
Affine = tuple[int | None, int]  # which element of a loop's carry, if any, and what is added


@dataclasses.dataclass(frozen=True)
class Run:
    """How often a computation runs.

    Attributes:
      times: per call of the program; every branch of a condition counts as taken.
      is_fused: whether it is the inside of one fused instruction.
      is_certain: false inside a loop whose steps are not known, which counts as one.
    """

    times: int
    is_fused: bool
    is_certain: bool


def runs(program: Program) -> dict[str, Run]:
    """Returns how often each computation runs; of one that is called twice, the sum."""
    found: dict[str, Run] = {}
    for name, times, is_fused, is_certain in _walk(program, program.entry, 1, False, True):
        old = found.get(name, Run(0, is_fused, True))
        found[name] = Run(old.times + times, is_fused, old.is_certain and is_certain)
    return found


def _walk(
    program: Program, name: str, times: int, is_fused: bool, is_certain: bool
) -> Iterator[tuple[str, int, bool, bool]]:
    yield name, times, is_fused, is_certain
    computation = program.computations[name]
    for each in computation.instructions.values():
        if each.opcode in ("async-update", "async-done"):  # print what async-start called
            continue
        trips = trip_count(program, computation, each) if each.opcode == "while" else 1
        inner = is_fused or each.opcode == "fusion"
        for called in (c for names in each.calls.values() for c in names):
            if called in program.computations:
                known = is_certain and trips is not None
                yield from _walk(program, called, times * (trips or 1), inner, known)


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """Returns the steps of a loop, or None if the text does not tell.

    The compiler's own note where there is one. TPU programs have none: there a condition compares a
    counter with a bound, both as they enter the loop, and the body adds a constant to the counter.
    """
    if found := _TRIPS.search(loop.attributes):
        return int(found[1])
    condition, body = (program.computations[loop.calls[part][0]] for part in ("condition", "body"))
    root = condition.instructions[condition.root]
    read = functools.partial(_affine, program, condition)
    if root.opcode == "fusion":
        inside = program.computations[root.calls["calls"][0]]
        read = functools.partial(_through, program, condition, root, inside)
        root = inside.instructions[inside.root]
    direction = re.search(r"direction=(\w+)", root.attributes)
    if root.opcode != "compare" or not direction:
        return None
    sides = [read(side) for side in root.operands]
    if None in sides:
        return None
    return _steps(program, caller, loop, body, sides, direction[1])


def _steps(program, caller, loop, body, sides: list[Affine], direction: str) -> int | None:
    """Steps of a loop that goes on while `sides[0] direction sides[1]`."""
    start, moves = [], []
    for index, offset in sides:
        if index is None:
            start.append(offset)
            moves.append(0)
            continue
        into = _element(program, caller, loop.operands[0], index)
        out = _element(program, body, body.root, index)
        if into is None or into[0] is not None or out is None or out[0] != index:
            return None
        start.append(into[1] + offset)
        moves.append(out[1])
    gap, closing = start[1] - start[0], moves[0] - moves[1]
    if direction in ("GT", "GE"):
        gap, closing = -gap, -closing
    if closing <= 0 or direction not in ("LT", "LE", "GT", "GE", "NE"):
        return None
    return max(0, -(-(gap + (direction in ("LE", "GE"))) // closing))


def _element(program: Program, computation: Computation, name: str, index: int) -> Affine | None:
    made = computation.instructions[name]
    if made.opcode == "tuple":
        return _affine(program, computation, made.operands[index])
    return (index, 0) if made.opcode == "parameter" else None


def _affine(program: Program, computation: Computation, name: str) -> Affine | None:
    """Returns an integer as an element of the computation's tuple parameter plus a constant."""
    each = computation.instructions[name]
    read = lambda operand: _affine(program, computation, operand)
    if each.opcode == "constant" and re.fullmatch(r"-?\d+", each.literal):
        return None, int(each.literal)
    if each.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        return read(each.operands[0])
    if each.opcode == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", each.attributes)[1])
        return _element(program, computation, each.operands[0], index)
    if each.opcode in ("add", "subtract"):
        left, right = map(read, each.operands)
        if left is None or right is None or (left[0] is not None and right[0] is not None):
            return None
        if each.opcode == "subtract":
            return None if right[0] is not None else (left[0], left[1] - right[1])
        return left[0] if left[0] is not None else right[0], left[1] + right[1]
    if each.opcode == "fusion" and "calls" in each.calls:
        inside = program.computations[each.calls["calls"][0]]
        return _through(program, computation, each, inside, inside.root)
    return None


def _through(program, computation, fusion, inside, name: str) -> Affine | None:
    """The same of what a fusion makes, with its parameters read outside."""
    each = inside.instructions[name]
    if each.opcode == "parameter":
        return _affine(program, computation, fusion.operands[int(each.literal)])
    parts = [_through(program, computation, fusion, inside, part) for part in each.operands]
    if each.opcode == "constant":
        return _affine(program, inside, name)
    if each.opcode == "add" and None not in parts and None in (parts[0][0], parts[1][0]):
        return next((p[0] for p in parts if p[0] is not None), None), parts[0][1] + parts[1][1]
    return parts[0] if each.opcode in ("bitcast", "copy", "convert") else None
