r"""Learning rates by number of recursions, before and after CompleteP: does the best rate stay?

  recursia sweep --config=sweeps/learning_rate_basins:tiny --workdir=sweeps/basins    # 150 trials
  recursia sweep report --workdir=sweeps/basins

A quarter of the size's blocks recurs once, twice and four times with tied weights, with the
standard parameterisation and with CompleteP (Dey et al. 2025, arXiv 2505.01618) whose base is one
recursion, where both are the same. All trials see as many tokens.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
STEPS = {"tiny": 120, "135m": 1000, "360m": 1000}
RECURSIONS = (1, 2, 4)


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    shape, steps = base.SHAPES[preset], STEPS[preset]
    blocks = shape["num_layers"] // 4
    depths = [
        {
            "config": f"recursive:{preset}",
            "sharing": "cycle",
            "num_layers": blocks * count,
            "depth.num_recursions": count,
            "labels": {"recursions": count},
        }
        for count in RECURSIONS
    ]
    tables = [
        {"labels": {"parameterisation": "standard"}},
        {
            "parameterisation.kind": "completep",
            "parameterisation.base_width": shape["embed_dim"],
            "parameterisation.base_layers": blocks,
            "labels": {"parameterisation": "completep"},
        },
    ]
    lengths = {"train.num_steps": steps, "schedule.warmup_steps": round(0.1 * steps)}
    rates = axes.rates((*axes.RATES[preset], 2 * axes.RATES[preset][-1]))
    seeds = axes.seeds(axes.SEEDS[preset])
    for trial in grids.product(tables, depths, rates, seeds, [{**axes.brief(preset), **lengths}]):
        add(**trial)
