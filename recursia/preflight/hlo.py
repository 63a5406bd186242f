"""Parses the HLO text of a compiled program for CPU, GPU or TPU."""

import dataclasses
import functools
import math
import re

ITEM_BYTES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
# Letters and then the number of bits of an element: f32, bf16, f8e4m3fn, s4, u8.
_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
# The metadata of a kernel may begin lines with "}}".
_END = re.compile(r"^\}(, execution_thread=.*)?\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|called_computations"
    r"|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique within its computation.
      opcode: its operation.
      shape: of its result, as printed.
      operands: names of the instructions that it reads.
      literal: the text in its parentheses.
      attributes: the text after its parentheses.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """The computations that it calls, by the attribute that names them."""
        return {
            match[1]: tuple(_NAME.findall(match[2])) if match[2] is not None else (match[3],)
            for match in _CALLS.finditer(self.attributes)
        }


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters in order."""
        lines = [line for line in self.instructions.values() if line.opcode == "parameter"]
        return sorted(lines, key=lambda line: int(line.literal))

    def shape_of(self, name: str) -> str:
        """Returns the printed shape of an instruction's result."""
        return self.instructions[name].shape


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the computation that runs first.
      num_devices: number of devices that run it together.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int


def parse(text: str) -> Program:
    """Returns a program from the text of `compiled.as_text()`.

    Raises:
      ValueError: if there is no entry computation.
    """
    computations, entry, lines, name, root = {}, None, {}, None, ""
    for line in text.splitlines():
        if name is None:
            if match := _HEAD.match(line):
                name, lines, root = match[2], {}, ""
                entry = name if match[1] else entry
        elif _END.match(line):
            computations[name] = Computation(name, lines, root)
            name = None
        elif match := _LINE.match(line):
            lines[match[2]] = _instruction(match[2], line[match.end() :])
            root = match[2] if match[1] else root
    if entry is None:
        raise ValueError("parse: the text has no ENTRY computation; give compiled.as_text()")
    head = text[: text.find("\n")]
    sizes = (re.search(rf"{what}=(\d+)", head) for what in ("num_partitions", "replica_count"))
    return Program(computations, entry, math.prod(int(size[1]) for size in sizes if size))


def _instruction(name: str, text: str) -> Instruction:
    end = _balanced(text) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    literal = rest[: end - 1]
    return Instruction(name, opcode, shape, tuple(_NAME.findall(literal)), literal, rest[end:])


def _balanced(text: str) -> int:
    """Returns the index after the parenthesis that closes a text's first one."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return parenthesis.end()
    return len(text)


def arrays(shape: str) -> list[tuple[int, str]]:
    """Returns the bytes and the layout of each array in a printed shape, which may be a tuple."""
    return [
        (item_bytes(kind, math.prod(int(d) for d in sizes.split(",") if d)), layout)
        for kind, sizes, layout in _ARRAY.findall(shape)
    ]


def item_bytes(kind: str, count: int) -> int:
    """Returns the bytes of `count` elements of an HLO type."""
    if kind in ITEM_BYTES:
        return count * ITEM_BYTES[kind]
    bits = _BITS.match(kind)
    return -(-count * int(bits[1]) // 8) if bits else 0


def num_bytes(shape: str) -> int:
    """Returns the bytes of a printed shape."""
    return sum(size for size, _ in arrays(shape))
