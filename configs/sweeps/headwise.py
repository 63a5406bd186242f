r"""Heads common to all layers at equal training FLOPs: none, half or all of them.

  recursia sweep --config=sweeps/headwise:tiny --workdir=sweeps/headwise       # 9 trials
  recursia sweep report --workdir=sweeps/headwise

Six layers; see Cao et al. 2024, arXiv 2402.11819.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import headwise
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
LAYERS, KEY_HEADS = 6, 2


def get_config(preset: str) -> ConfigDict:
    return headwise.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    common = {**axes.BRIEF, "config": f"headwise:{preset}", "num_layers": LAYERS}
    shares = [
        {"weights.num_shared": count, "labels": {"shared": count / KEY_HEADS}}
        for count in range(KEY_HEADS + 1)
    ]
    for trial in grids.product(shares, [{**common, "train.batch_size": 4}], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
