"""Every token takes every recursion; with one recursion, any plain stack.

Recursive Transformers: Bae et al. 2024, arXiv 2410.20672.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import inject, kv, ranges
from recursia.depth.policy import Aux, Call, Mode, Pass
from recursia.layers.attention import Context
from recursia.sharing import walk
from recursia.sharing.core import Core, Made
from recursia.sharing.grid import Grid

SLOTS = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """A depth that is the same for all tokens.

    Attributes:
      num_recursions: how often every token goes round.
      exit_loss: which states training reads through the head: "last"; all, "weighted" by their
        depth i as i / sum of all; or "aggressive", the last plus `exit_alpha` times each other
        (Bae et al. 2024, arXiv 2410.20672).
      exit_alpha: weight of each earlier state under "aggressive".
    """

    num_recursions: int
    exit_loss: Literal["last", "weighted", "aggressive"] = "last"
    exit_alpha: float = 0.1

    def __post_init__(self):
        ranges.recursions(self)
        ranges.at_least(0, self, "exit_alpha")


def specs(config: Config, grid: Grid, embed_dim: int) -> dict[str, Any]:
    """Returns no parameters: nothing decides."""
    return {}


def check(config: Config, grid: Grid, kv: kv.Config, told: inject.Config) -> None:
    """Accepts every grid, but exits need the state after each recursion to be what the head reads.

    Raises:
      ValueError: for exit losses on order "sequence", or before a coda.
    """
    if grid.order == "sequence" and config.exit_loss != "last":
        raise ValueError(
            f"depth.exit_loss: {config.exit_loss!r} reads the state after each recursion, and "
            "sharing 'sequence' walks block by block; take a cycle, or 'last'"
        )
    if grid.coda and config.exit_loss != "last":
        raise ValueError(
            f"depth.exit_loss: {config.exit_loss!r} reads each recursion's state through the head, "
            f"and {grid.coda} blocks of coda stand between; take sharing 'cycle', or 'last'"
        )


def run(
    core: Core,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    config: Config,
    call: Call,
) -> tuple[Float[Array, "B T D"], Aux]:
    """Returns the states after all recursions; the modes do not differ."""
    is_read = call.mode != "train" or config.exit_loss != "last"
    if walk.can_walk(core) and (core.grid.order == "sequence" or not is_read):
        x, report = walk.walk(core, x, context)
        return x, Aux({}, {}, jnp.full(x.shape[:2], core.grid.num_recursions), None, report)

    def cycle(core: Core, x: Array) -> tuple[Array, Array, dict[str, Any]]:
        def recursion(x: Array, private: Any, _: None, source: Made | None):
            y, made = core.recurse(core.enter(x, private, context), private, context, source)
            return y, y, made

        return core.each_recursion(recursion, x, None)

    if core.grid.order == "cycle":
        x, states, report = cycle(core, x)
    else:
        alone = lambda core, x: (lambda x, _, report: (x, report))(*cycle(core, x))
        x, report = core.each_block(alone, x)  # [K R 1 ...]
        states, report = None, jax.tree.map(lambda leaf: leaf[:, :, 0].swapaxes(0, 1), report)
    depth_used = jnp.full(x.shape[:2], core.grid.num_recursions)
    weights = None
    if config.exit_loss != "last" and call.mode == "train":
        weights = jnp.broadcast_to(exit_weights(config)[:, None, None], states.shape[:3])
    return x, Aux({}, {}, depth_used, states, report, weights)


def exit_weights(config: Config) -> Float[Array, "R"]:
    """Returns the weight of each recursion's cross-entropy in training."""
    depth = jnp.arange(1.0, config.num_recursions + 1)
    if config.exit_loss == "weighted":
        return depth / depth.sum()
    return jnp.where(depth == config.num_recursions, 1.0, config.exit_alpha)


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


def num_exits(config: Config) -> int:
    """Returns how many states training reads through the head."""
    return 1 if config.exit_loss == "last" else config.num_recursions


def score_flops(config: Config, embed_dim: int) -> int:
    """Returns 0: nothing is scored."""
    return 0
