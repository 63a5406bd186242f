r"""Depth at equal unique parameters: what more recursions of the same blocks are worth.

  recursia sweep --config=sweeps/equal_parameters:tiny --workdir=sweeps/depth     # 8 trials
  recursia sweep report --workdir=sweeps/depth

A core of as many blocks as the size's own preset recurs 1 to 4 times between an unshared first and
last block. A size alone gives every trial the same training FLOPs, so deeper models take fewer
steps; SIZE_tokens gives every trial the tokens of the model with one recursion.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "tiny_tokens", "135m", "135m_tokens", "360m", "360m_tokens")
RECURSIONS = (1, 2, 3, 4)
ENDS = 2  # unshared blocks


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset.partition("_")[0])


def sweep(add: Callable[..., None], preset: str) -> None:
    size, _, is_by_tokens = preset.partition("_")
    flops, common = axes.sized(size)
    layers = base.MIDDLE_THREE.get(size, base.SHAPES[size]["num_layers"])
    block_count = (layers - ENDS) // 3
    models = [
        {
            "config": f"recursive:{size}",
            "depth.num_recursions": recursions,
            "num_layers": ENDS + block_count * recursions,
            "labels": {"recursions": recursions},
        }
        for recursions in RECURSIONS
    ]
    for shared in common:
        trials = [
            axes.spending(flops, trial, axes.WARMUP[size])
            for trial in grids.product(models, [shared])
        ]
        for trial in trials:
            lengths = ("train.num_steps", "schedule.warmup_steps")
            same = {name: trials[0][name] for name in lengths} if is_by_tokens else {}
            add(**{**trial, **same})
