r"""Euler's or Heun's method at equal evaluations of one block, which are equal training FLOPs.

  recursia sweep --config=sweeps/integrators:tiny --workdir=sweeps/integrators     # 60 trials
  recursia sweep report --workdir=sweeps/integrators

One block as a differential equation (Chen et al. 2023, arXiv 2310.12818): Euler's method in as many
steps of size 1 as the size has layers; Heun's in half as many, each of two evaluations, over the
same time, so of size 2, or of size 1 over half the time.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia.configs import base, neural_ode
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")


def get_config(preset: str) -> ConfigDict:
    return neural_ode.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    most = base.SHAPES[preset]["num_layers"]
    models = [
        {
            "config": f"neural_ode:{preset}",
            "depth.sampled": (),
            "depth.method": method,
            "num_layers": steps,
            "depth.num_recursions": steps,
            "depth.horizon": float(time),
            "labels": {"method": f"{method}, {steps} steps of {time // steps}"},
        }
        for method, steps, time in (
            ("euler", most, most),
            ("heun", most // 2, most),
            ("heun", most // 2, most // 2),
        )
    ]
    for trial in axes.asked(preset, models):
        add(**trial)
