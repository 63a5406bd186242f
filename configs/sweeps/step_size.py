r"""Numbers of steps drawn in training: what they cost at full depth, and gain at half.

  recursia sweep --config=sweeps/step_size:tiny --workdir=sweeps/step_size    # 6 trials
  recursia sweep report --workdir=sweeps/step_size
  recursia eval --workdir=sweeps/step_size/trials/NAME --depths=4,6,8

One block in 8 steps (`neural_ode`), trained on 8 steps alone or on 4, 6 and 8, at equal training
FLOPs.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import neural_ode
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return neural_ode.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    base = {"config": f"neural_ode:{preset}"}
    models = [
        {**base, "depth.sampled": (), "labels": {"trained on": "8"}},
        {**base, "labels": {"trained on": "4, 6, 8"}},
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
