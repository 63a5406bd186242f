r"""Sharing patterns at equal training FLOPs: which blocks recur, in which order.

  recursia sweep --config=sweeps/sharing:tiny --workdir=sweeps/sharing       # 18 trials
  recursia sweep report --workdir=sweeps/sharing

The patterns of Recursive Transformers (Bae et al. 2024, arXiv 2410.20672) with two and three
recursions, and the unshared model. The number of layers is the nearest that a pattern can have.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
PATTERNS = ("cycle", "sequence", "middle_cycle", "middle_sequence")


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset)
    layers = base.SHAPES[preset]["num_layers"]
    unshared = {"config": f"vanilla:{preset}", "labels": {"sharing": "none", "recursions": 1}}
    models = [unshared]
    for sharing in PATTERNS:
        ends = 2 * sharing.startswith("middle")
        models += [
            {
                "config": f"recursive:{preset}",
                "sharing": sharing,
                "depth.num_recursions": recursions,
                "num_layers": ends + recursions * round((layers - ends) / recursions),
                "labels": {"sharing": sharing, "recursions": recursions},
            }
            for recursions in (2, 3)
        ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
