r"""Recursion and memory layers: does either do the other's work? At equal training FLOPs.

  recursia sweep --config=sweeps/memories:tiny --workdir=sweeps/memories     # 80 trials
  recursia sweep report --workdir=sweeps/memories

Half of the size's blocks are applied once or twice, with the feed-forward of the size or with a
memory layer in its place (Berges et al. 2024, arXiv 2412.09764), whose one table of values serves
all steps.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia.configs import base, memory
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m")


def get_config(preset: str) -> ConfigDict:
    return memory.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    blocks = base.SHAPES[preset]["num_layers"] // 2
    models = [
        {
            "config": f"{config}:{preset}",
            "sharing": "cycle",
            "num_layers": blocks * count,
            "depth.num_recursions": count,
            "labels": {"feed-forward": name, "recursions": count},
        }
        for name, config in (("dense", "recursive"), ("memory", "memory"))
        for count in (1, 2)
    ]
    for trial in axes.asked(preset, models):
        add(**trial)
