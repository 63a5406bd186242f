r"""What a private thin MLP is worth, and the order in which blocks recur, at equal training FLOPs.

  recursia sweep --config=sweeps/thin_mlp:tiny --workdir=sweeps/thin_mlp      # 12 trials
  recursia sweep report --workdir=sweeps/thin_mlp

Recursive blocks without and with factors and thin MLPs (`sret`), in place ("sequence") and one
after the other ("cycle"). The number of layers is that of the size.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import sret
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return sret.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    models = [
        {
            "config": f"{system}:{preset}",
            "sharing": sharing,
            "depth.num_recursions": 2,
            "labels": {"blocks": system, "sharing": sharing},
        }
        for system in ("recursive", "sret")
        for sharing in ("sequence", "cycle")
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
