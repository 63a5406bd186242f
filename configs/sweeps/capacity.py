r"""Capacities of expert choice at equal training FLOPs: how many tokens each recursion keeps.

  recursia sweep --config=sweeps/capacity:tiny --workdir=sweeps/capacity     # 12 trials
  recursia sweep report --workdir=sweeps/capacity

Three recursions of Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524), whose own capacities
are (1, 2/3, 1/3). What smaller capacities save is spent in more steps.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import mor
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
CAPACITIES = {
    "1, 1, 1": (1.0, 1.0, 1.0),
    "1, 3/4, 1/2": (1.0, 3 / 4, 1 / 2),
    "1, 2/3, 1/3": (1.0, 2 / 3, 1 / 3),
    "1, 1/2, 1/2": (1.0, 1 / 2, 1 / 2),
    "1, 1/2, 1/4": (1.0, 1 / 2, 1 / 4),
    "1, 1/4, 1/8": (1.0, 1 / 4, 1 / 8),
}


def get_config(preset: str) -> ConfigDict:
    return mor.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset)
    models = [
        {
            "config": f"mor:{preset}",
            "depth.capacity": shares,
            "labels": {"capacity": name, "mean_capacity": round(sum(shares) / len(shares), 3)},
        }
        for name, shares in CAPACITIES.items()
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
