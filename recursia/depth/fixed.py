"""Every token takes every recursion; with one recursion, any plain stack.

Recursive Transformers: Bae et al. 2024, arXiv 2410.20672.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import kv
from recursia.depth.policy import Aux, Mode, Pass
from recursia.layers.attention import Context
from recursia.sharing.core import Core, Source
from recursia.sharing.grid import Grid

SLOTS = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """A depth that is the same for all tokens.

    Attributes:
      num_recursions: how often every token goes round.
    """

    num_recursions: int


def specs(config: Config, grid: Grid, embed_dim: int) -> dict[str, Any]:
    """Returns no parameters: nothing decides."""
    return {}


def check(config: Config, grid: Grid) -> None:
    """Accepts every grid."""


def run(
    core: Core,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    config: Config,
    *,
    mode: Mode,
    step: Int[Array, ""] | None,
) -> tuple[Float[Array, "B T D"], Aux]:
    """Returns the states after all recursions; the modes do not differ."""

    def cycle(core: Core, x: Array) -> tuple[Array, Array]:
        def recursion(x: Array, private: Any, _: None, source: Source | None):
            y, made = core.recurse(x, private, context, source)
            return y, y, (made, context)

        return core.each_recursion(recursion, x, None)

    if core.grid.order == "cycle":
        x, states = cycle(core, x)
    else:
        x, states = core.each_block(lambda core, x: (cycle(core, x)[0], None), x)
    return x, Aux({}, {}, jnp.full(x.shape[:2], core.grid.num_recursions), states)


def at_depth(config: Config, num_recursions: int) -> Config:
    """Returns the config of another depth."""
    return dataclasses.replace(config, num_recursions=num_recursions)


def at_step(config: Config, step: int) -> Config:
    """Returns the config itself: training steps do not differ."""
    return config


def is_causal(config: Config, mode: Mode) -> bool:
    """Returns True: no token looks ahead."""
    return True


def passes(config: Config, grid: Grid, kv: kv.Config, seq_len: int) -> list[Pass]:
    """Returns one full pass per recursion."""
    return [Pass(seq_len, seq_len, kv.is_reading(r), 0) for r in range(grid.num_recursions)]


def score_flops(config: Config, embed_dim: int) -> int:
    """Returns 0: nothing is scored."""
    return 0
