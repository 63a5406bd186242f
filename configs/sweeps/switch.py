r"""AdamW, Muon, and AdamW that becomes Muon in the decay of the rate: at equal training FLOPs.

  recursia sweep --config=sweeps/switch:tiny --workdir=sweeps/switch       # 9 trials
  recursia sweep report --workdir=sweeps/switch

The switch of Xmodel-2.5 (arXiv 2511.19496), in a recursive model of one learning rate; the decay
takes the last fifth of the steps.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
KINDS = ("adamw", "muon", "adamw_to_muon")


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    models = [
        {
            "config": f"recursive:{preset}",
            "optimizer.kind": kind,
            "schedule.decay_fraction": 0.2,
            "labels": {"optimizer": kind},
        }
        for kind in KINDS
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
