r"""Uniform against scaled widths at equal parameters and equal training FLOPs.

  recursia sweep --config=sweeps/widths:tiny --workdir=sweeps/widths     # 6 trials
  recursia sweep report --workdir=sweeps/widths

See Mehta et al. 2024, arXiv 2404.14619: of models of one size, the one whose deeper layers are
wider should have the lower loss. Here both have eight layers: from 2 to 4 heads and from 32 to 256
hidden units, or 3 heads and 144 hidden units each.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import openelm
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
UNIFORM = {"weights.heads": (0.75,), "weights.hidden": (0.5625,)}  # the mean of the scaled
WIDTHS = (
    {"labels": {"widths": "scaled"}},
    {**UNIFORM, "labels": {"widths": "uniform"}},
)


def get_config(preset: str) -> ConfigDict:
    return openelm.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    own = {"block.mixer.num_kv_heads": 4}  # or there were no 3 heads
    common = {**axes.BRIEF, **own, "config": f"openelm:{preset}", "train.batch_size": 4}
    for trial in grids.product(WIDTHS, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
