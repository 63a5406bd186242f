r"""A folded model and a smaller one of as many matrix numbers, at equal training FLOPs.

  recursia sweep --config=sweeps/rps:tiny --workdir=sweeps/rps       # 6 trials
  recursia sweep report --workdir=sweeps/rps

Folding to a quarter (STABLE-RPS, Desai & Shrivastava 2024) against the vanilla model of half the
width, which has a quarter of the numbers in each matrix and takes more steps for the same FLOPs.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import rps
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
NARROW = {
    "block.embed_dim": 32,
    "block.mixer.head_dim": 8,
    "block.feedforward.mlp_dim": 96,
}


def get_config(preset: str) -> ConfigDict:
    return rps.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    models = [
        {"config": f"rps:{preset}", "labels": {"model": "folded"}},
        {"config": f"vanilla:{preset}", **NARROW, "labels": {"model": "narrow"}},
    ]
    common = {**axes.BRIEF, "train.batch_size": 4}
    for trial in grids.product(models, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
