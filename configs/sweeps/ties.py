r"""Layers that are tied at first, beside layers that always are or never are, at equal FLOPs.

  recursia sweep --config=sweeps/ties:tiny --workdir=sweeps/ties              # 12 trials
  recursia sweep report --workdir=sweeps/ties

Half as many blocks as layers ("cycle"), one block ("one"), a block for each layer ("none"), and the
schedule of `dlt` from one to all.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import dlt
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return dlt.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    base = {"config": f"dlt:{preset}"}
    fixed = {"train.ties": ()}
    slots = {f"varies.{slot}": "one" for slot in ("norms", "attention", "mlp")}
    models = [
        {**base, **fixed, **slots, "labels": {"blocks": "one"}},
        {**base, **fixed, "sharing": "cycle", "labels": {"blocks": "half"}},
        {**base, **fixed, "labels": {"blocks": "all"}},
        {**base, "labels": {"blocks": "from one to all"}},
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
