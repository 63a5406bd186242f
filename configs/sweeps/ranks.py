r"""Adapters of more rank in the later recursion, and of the same rank in both, at equal parameters.

  recursia sweep --config=sweeps/ranks:tiny --workdir=sweeps/ranks            # 9 trials
  recursia sweep report --workdir=sweeps/ranks

Two recursions of shared blocks without adapters, with rank 6 in both, and with ranks 4 and 8, at
equal training FLOPs.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import relaxed
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return relaxed.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    tied = {"config": f"recursive:{preset}", "sharing": "cycle", "depth.num_recursions": 2}
    models = [
        {**tied, "labels": {"ranks": "none"}},
        {"config": f"relaxed:{preset}", "weights.rank": 6, "labels": {"ranks": "6, 6"}},
        {"config": f"relaxed:{preset}_graded", "labels": {"ranks": "4, 8"}},
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
