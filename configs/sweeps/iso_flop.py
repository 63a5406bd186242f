r"""Loss against size at equal training FLOPs: which size is best, and how it grows with FLOPs.

  recursia sweep --config=sweeps/iso_flop:tiny --workdir=sweeps/iso_flop     # see docs/sweeps.md
  recursia sweep report --workdir=sweeps/iso_flop --out=iso_flop.png

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): at each budget of FLOPs models of several
sizes are trained, each for the steps that spend it. A preset is a set of budgets, sizes, systems
and recursions:

  tiny             3 budgets, 3 widths, three systems, 3 seeds: 81 trials of seconds on a CPU
  tiny_recursions  the same for recursive models with 2, 3 and 4 recursions, 1 seed: 54 trials
  published        the budgets and sizes of Bae et al. 2025 (arXiv 2507.10524), 2 to 4 recursions

Sequences, recipe and data are those of each size's own preset. The tiny ones have 5 layers, or one
shared block between two others, and batches of 256 tokens: at so few FLOPs, deeper models and
larger batches are too few updates. Their learning rate is constant after the warm-up, so that one
compiled program serves all budgets, and each budget has seeds of its own.
"""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, mor, vanilla
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "tiny_recursions", "published")
WIDTHS = (8, 16, 24)
BUDGETS = (2e10, 4e10, 8e10)
RECIPE = {
    **axes.BRIEF,
    "train.batch_size": 2,
    "optimizer.learning_rate": 5e-3,
    "schedule.kind": "constant",
    "schedule.warmup_steps": 20,
}
SIZES = ("135m", "360m", "730m", "1.7b")
PUBLISHED_BUDGETS = (2e18, 5e18, 16.5e18)


def get_config(preset: str) -> ConfigDict:
    return vanilla.get_config("360m" if preset == "published" else "tiny")


def sweep(add: Callable[..., None], preset: str) -> None:
    if preset == "published":
        for trial in grids.product(list(published()), budgets(PUBLISHED_BUDGETS)):
            add(**spent(trial, warmup=0.006))
        return
    is_whole = preset == "tiny"
    systems = [unshared("tiny", 5)] if is_whole else []
    for recursions in (3,) if is_whole else (2, 3, 4):
        systems += shared("tiny", recursions, 2 + recursions)  # one block recurs, between two
    count = 3 if is_whole else 1
    for index, budget in enumerate(budgets(BUDGETS)):
        seeds = axes.seeds(count, first=index * count)
        models = grids.product(systems, [budget], axes.widths(WIDTHS), [RECIPE])
        for trial in grids.product([spent(model, warmup=0.0) for model in models], seeds):
            add(**trial)


def published() -> Iterator[axes.Overrides]:
    changed = {3: base.MIDDLE_THREE, 4: mor.MIDDLE_FOUR}
    for size in SIZES:
        layers = base.SHAPES[size]["num_layers"]
        systems = [unshared(size, layers)]
        for recursions in (2, 3, 4):
            systems += shared(size, recursions, changed.get(recursions, {}).get(size, layers))
        for each in systems:
            yield {**each, "labels": {**each["labels"], "size": size}}


def budgets(flops: tuple[float, ...]) -> list[axes.Overrides]:
    return [{"labels": {"budget": each}} for each in flops]


def spent(trial: axes.Overrides, warmup: float) -> axes.Overrides:
    return axes.spending(trial["labels"]["budget"], trial, warmup)


def unshared(size: str, num_layers: int) -> axes.Overrides:
    labels = {"system": "vanilla", "recursions": 1}
    return {"config": f"vanilla:{size}", "num_layers": num_layers, "labels": labels}


def shared(size: str, recursions: int, num_layers: int) -> Iterator[axes.Overrides]:
    for system in ("recursive", "mor"):
        yield {
            "config": f"{system}:{size}",
            "depth.num_recursions": recursions,
            "num_layers": num_layers,
            "labels": {"system": system, "recursions": recursions},
        }
