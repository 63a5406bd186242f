r"""Stores of several sizes at equal training FLOPs: 30, 50 and 100 % of the matrices' numbers.

  recursia sweep --config=sweeps/npas:tiny --workdir=sweeps/npas       # 9 trials
  recursia sweep report --workdir=sweeps/npas

See Plummer et al. 2020, arXiv 2006.10598: the loss should fall as the budget grows.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import npas
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return npas.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    common = {**axes.BRIEF, "config": f"npas:{preset}", "train.batch_size": 4}
    budgets = [{"weights.budget": part, "labels": {"store": part}} for part in (0.3, 0.5, 1.0)]
    for trial in grids.product(budgets, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
