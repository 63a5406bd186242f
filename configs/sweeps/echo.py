r"""How many layers can have the attention of an earlier one, at equal training FLOPs.

  recursia sweep --config=sweeps/echo:tiny --workdir=sweeps/echo       # 9 trials
  recursia sweep report --workdir=sweeps/echo

Of eight layers none, the inner four or the inner six replay queries and keys of the last one below
them (Rajabzadeh et al. 2024, arXiv 2409.14595). The report shows the loss beside the parameters.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import echo
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
PLANS = {0: "own", 4: "below/2", 6: "below/1"}  # by the number of layers that replay


def get_config(preset: str) -> ConfigDict:
    return echo.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    common = {**axes.BRIEF, "config": f"echo:{preset}", "train.batch_size": 4}
    plans = [{"kv.kv_sharing": plan, "labels": {"replays": n}} for n, plan in PLANS.items()]
    for trial in grids.product(plans, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
