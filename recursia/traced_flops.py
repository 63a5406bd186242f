"""Matrix-multiplication FLOPs of a traced program, counted over its jaxpr."""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import jax
from jax.core import ShapedArray
from jax.extend import core as jax_core

Jaxpr = jax_core.ClosedJaxpr | jax_core.Jaxpr

P = ParamSpec("P")
T = TypeVar("T")
_MAKING = "making_weights"
_UNCOUNTED = ("conv_general_dilated", "ragged_dot_general", "pallas_call")


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the FLOPs of every matrix multiplication that a traced program executes.

    A scan counts once for each of its iterations, and of the branches of a condition the dearest.

    Raises:
      ValueError: for a multiplication whose number is not known: in a loop without a fixed length,
        or by an operation that is not counted here.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, jax_core.ClosedJaxpr) else jaxpr
    return sum(map(_equation_flops, jaxpr.eqns))


def uncounted(making: Callable[P, T]) -> Callable[P, T]:
    """Returns a function that makes weights of their parts, whose products are not counted.

    They are as many for one token as for a whole batch, so that no number for each token has them:
    `Weights.making_flops` gives them apart.
    """

    @functools.wraps(making)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return making(*args, **kwargs)

    run.__name__ = run.__qualname__ = _MAKING
    return jax.jit(run)


def _equation_flops(equation: jax_core.JaxprEqn) -> int:
    name = equation.primitive.name
    if equation.params.get("name") == _MAKING:
        return 0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if op := getattr(equation.primitive, "op", None):
        arrays = (variable.aval for variable in equation.invars)
        arrays = jax.tree.unflatten(equation.params["tree"], arrays)
        return op.flops(*arrays, **dict(equation.params["static"])) if op.flops else 0
    if name in _UNCOUNTED:
        raise ValueError(f"count_flops: {name} is not counted; trace the reference path instead")
    inner = [count_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError(
            f"count_flops: a while loop multiplies {sum(inner)} FLOPs in each step, for a number "
            "of steps that is not known; trace it as a scan"
        )
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # its jaxpr is that of one device
        sizes = equation.params["mesh"].shape
        return sum(inner) * math.prod(sizes[a] for a in equation.params["newly_manual_axes"])
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _shape(operand: jax_core.Var | jax_core.Literal) -> tuple[int, ...]:
    return cast(ShapedArray, operand.aval).shape  # operands of a product are arrays


def _inner_jaxprs(equation: jax_core.JaxprEqn) -> list[Jaxpr]:
    values = equation.params.values()
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return [v for v in flat if isinstance(v, jax_core.ClosedJaxpr | jax_core.Jaxpr)]
