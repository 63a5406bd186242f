"""Temporary memory of a traced program: what it makes, keeps and drops, counted before compiling.

A buffer is what a product, a gather, a reduction, a kernel, a loop or the like makes; what works
element by element is fused with a reduction or product that reads it and has none, so its sources
stay until then. Whatever else reads it needs it in a buffer, and so does a product where a library
multiplies (GPUs). A loop keeps its carries in place and
stacks what it saves for the backward pass; a parameter's gradient is a buffer like any other. The
order is that of the trace.

Not known here: padding to tiles, copies for another layout, what the compiler computes again or
in another order, and where a nearer memory than HBM takes a buffer.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np
from jax.extend import core

# Neither elementwise nor large: what an operation of another name gives is a buffer of its own.
_FUSED = frozenset(
    "abs add add_any and atan2 broadcast_in_dim cbrt ceil clamp concatenate convert_element_type "
    "copy cos div dynamic_slice eq erf exp exp2 expand_dims expm1 floor ge gt integer_pow iota "
    "is_finite le log log1p logistic lt max min mul name ne neg not or pad pow pvary "
    "random_bits random_fold_in random_unwrap random_wrap real reduce_precision rem reshape rev "
    "round rsqrt select_n sharding_constraint shift_left shift_right_logical sign sin slice split "
    "sqrt square squeeze stack stop_gradient sub tan tanh threefry2x32 transpose unstack "
    "xor".split()
)
_VIEWS = ("name", "reshape", "squeeze", "broadcast_in_dim", "expand_dims", "split", "unstack")
_FUSES = ("reduce_", "argmax", "argmin")  # read what is computed as they go
_INLINED = ("pjit", "jit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "shard_map",
            "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip


@dataclasses.dataclass(eq=False)
class _Buffer:
    bytes: int
    first: int
    last: int


def peak_bytes(jaxpr: core.ClosedJaxpr | core.Jaxpr, platform: Literal["tpu", "cuda"]) -> int:
    """Returns the temporary bytes of a program at its worst moment.

    Arguments are the caller's and so are the results, which take their places.

    Args:
      jaxpr: the program.
      platform: whose kernels it runs. On a TPU a product, too, reads what is computed as it goes.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return _Walk(jaxpr, platform).peak()


class _Walk:
    """One level of a program, calls inlined, in the order of its equations."""

    def __init__(self, jaxpr: core.Jaxpr, platform: Literal["tpu", "cuda"]):
        self.platform = platform
        self.fuses = (*_FUSES, "dot_general") if platform == "tpu" else _FUSES
        self.buffers: list[_Buffer] = []
        self.inner: dict[int, int] = {}  # temporary bytes inside an equation
        self.carried: dict[int, frozenset] = {}  # that a loop writes its results over
        self.sources: dict[Any, frozenset] = {}
        self.computed: set[Any] = set()  # values that no buffer holds yet
        self.time = 0
        found = self.walk(jaxpr, [frozenset()] * len(jaxpr.invars))
        self.results = frozenset().union(*found)

    def peak(self, besides: frozenset = frozenset()) -> int:
        """Returns the most bytes alive at a time, besides those of some buffers."""
        worst = 0
        for time in range(self.time):
            over = self.carried.get(time, frozenset())
            alive = (b for b in self.buffers if b.first <= time <= b.last and b not in besides)
            live = sum(b.bytes for b in alive if not (b in over and b.last == time))
            worst = max(worst, live + self.inner.get(time, 0))
        return worst

    def read(self, value: Any) -> frozenset:
        """Returns the buffers that a value is made of."""
        return frozenset() if isinstance(value, core.Literal) else self.sources[value]

    def walk(self, jaxpr: core.Jaxpr, arguments: list[frozenset]) -> list[frozenset]:
        """Runs the equations; returns the buffers that each output is made of."""
        self.sources |= zip(jaxpr.invars, arguments, strict=True)
        self.sources |= {value: frozenset() for value in jaxpr.constvars}
        for equation in jaxpr.eqns:
            found = self.equation(equation)
            self.sources |= zip(equation.outvars, found, strict=True)
        return [self.read(value) for value in jaxpr.outvars]

    def equation(self, equation: Any) -> list[frozenset]:
        """Returns the buffers that each result of an equation is made of."""
        name, operands = equation.primitive.name, equation.invars
        if name in _INLINED or (name == "scan" and equation.params["length"] == 1):
            return self.call(_jaxprs(equation)[0], operands, equation.outvars)
        if name not in _FUSED and not name.startswith(self.fuses):
            self.fill(equation)
        everything = frozenset().union(*map(self.read, operands))
        if name in _FUSED:
            is_view = name in _VIEWS and not any(self.is_computed(value) for value in operands)
            self.mark(equation.outvars, [not is_view] * len(equation.outvars))
            return [everything] * len(equation.outvars)
        self.mark(equation.outvars, [False] * len(equation.outvars))
        if name == "dynamic_update_slice":
            return [self.read(operands[0])]
        time = self.time
        self.time += 1
        for buffer in everything:
            buffer.last = time
        self.carried[time] = frozenset().union(*map(self.read, _carries(equation)))
        self.inner[time] = self.inside(equation)
        return [frozenset([self.make(value, time)]) for value in equation.outvars]

    def call(self, jaxpr: core.Jaxpr, operands: list[Any], results: list[Any]) -> list[frozenset]:
        """Walks a call as if it stood here."""
        operands = operands[len(operands) - len(jaxpr.invars) :]
        self.mark(jaxpr.invars, map(self.is_computed, operands))
        found = self.walk(jaxpr, [self.read(value) for value in operands])
        self.mark(results, map(self.is_computed, jaxpr.outvars))
        return found

    def inside(self, equation: Any) -> int:
        """Returns the temporary bytes of an equation's inside, its results being outside."""
        if equation.primitive.name == "pallas_call":
            return 0  # in a nearer memory
        if (op := getattr(equation.primitive, "op", None)) is not None:
            walk = _Walk(op.program(equation, self.platform).jaxpr, self.platform)
            return walk.peak(besides=walk.results)
        return max((_Walk(each, self.platform).peak() for each in _jaxprs(equation)), default=0)

    def fill(self, equation: Any) -> None:
        """Gives what an equation reads a buffer where it has none, but for a loop's carries."""
        carries = {id(value) for value in _carries(equation)}
        for value in equation.invars:
            if self.is_computed(value) and id(value) not in carries:
                self.computed.remove(value)
                for buffer in self.sources[value]:
                    buffer.last = self.time
                self.sources[value] = frozenset([self.make(value, self.time)])

    def mark(self, values: list[Any], are_computed: Iterable[bool]) -> None:
        """Notes of each value whether no buffer holds it."""
        for value, is_computed in zip(values, are_computed, strict=True):
            (self.computed.add if is_computed else self.computed.discard)(value)

    def is_computed(self, value: Any) -> bool:
        """Returns whether no buffer holds a value."""
        return not isinstance(value, core.Literal) and value in self.computed

    def make(self, value: Any, time: int) -> _Buffer:
        """Returns a new buffer for a value."""
        self.buffers.append(_Buffer(_bytes(value.aval), time, time))
        return self.buffers[-1]


def _carries(equation: Any) -> list[Any]:
    """Returns what a loop starts from and writes over; nothing for another equation.

    By shape: how an equation's parameters number them changes from one jax to the next. A step has
    one axis less of what a scan takes apart and puts together, and a loop's carries come before.
    """
    if equation.primitive.name not in ("scan", "while"):
        return []
    carries = len(equation.outvars)
    if equation.primitive.name == "while":  # all that it gives, and what it takes last
        return equation.invars[len(equation.invars) - carries :]
    (step,) = _jaxprs(equation)
    is_whole = lambda outer, inner: len(outer.aval.shape) == len(inner.aval.shape)
    behind = sum(map(is_whole, equation.invars, step.invars))
    carries = sum(map(is_whole, equation.outvars, step.outvars))
    return equation.invars[behind - carries : behind]


def _jaxprs(equation: Any) -> list[core.Jaxpr]:
    values = equation.params.values()
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    kinds = (core.ClosedJaxpr, core.Jaxpr)
    return [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in flat if isinstance(v, kinds)]


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape"):
        return 0
    dtype = aval.dtype
    size = 4 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
    return math.prod(aval.shape) * size
