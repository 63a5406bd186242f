r"""Learning rates by width and number of recursions: does the best rate move?

  recursia sweep --config=sweeps/learning_rate:tiny --workdir=sweeps/rates   # 45 trials
  recursia sweep report --workdir=sweeps/rates

A rate that is best for a small or shallow model saves a search at large size only if the best rate
stays or moves predictably (Yang et al. 2022, arXiv 2203.03466). All models of a preset see as
many tokens; those of one size have as many layers, and with one recursion nothing is shared.

  tiny       widths 16, 32 and 64, 1 to 3 recursions, 200 steps
  published  widths of 135m, 360m and 730m, 1 and 3 recursions, 1000 steps of 2.1 M tokens
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "published")
SIZES = ("135m", "360m", "730m")
RATES = {
    "tiny": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "published": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
}


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config("tiny" if preset == "tiny" else "360m")


def sweep(add: Callable[..., None], preset: str) -> None:
    rates = [
        {"optimizer.learning_rate": rate, "labels": {"learning_rate": rate}}
        for rate in RATES[preset]
    ]
    is_tiny = preset == "tiny"
    recursions = [
        {"depth.num_recursions": count, "labels": {"recursions": count}}
        for count in ((1, 2, 3) if is_tiny else (1, 3))
    ]
    if is_tiny:
        models = [{"config": "recursive:tiny", **each} for each in axes.widths((16, 32, 64))]
        recipe = {**axes.BRIEF, "train.batch_size": 4, **length(200, 0.05)}
    else:
        models = [
            {"config": f"recursive:{size}", "labels": {"width": base.SHAPES[size]["embed_dim"]}}
            for size in SIZES
        ]
        recipe = length(1000, 0.006)
    for trial in grids.product(models, recursions, rates, [recipe]):
        add(**trial)


def length(steps: int, warmup: float) -> axes.Overrides:
    return {"train.num_steps": steps, "schedule.warmup_steps": round(warmup * steps)}
