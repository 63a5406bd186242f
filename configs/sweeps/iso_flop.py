r"""Loss against size at equal training FLOPs: which size is best, and how it grows with FLOPs.

  recursia sweep --config=sweeps/iso_flop:tiny --workdir=sweeps/iso_flop     # see docs/sweeps.md
  recursia sweep report --workdir=sweeps/iso_flop --out=iso_flop.png

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): at each budget of FLOPs models of several
sizes are trained, each for the steps that spend it. A preset is a set of budgets, sizes, systems
and recursions:

  tiny             3 budgets, 4 widths, three systems, 3 seeds: 108 trials of seconds on a CPU
  tiny_recursions  the same for recursive models with 2, 3 and 4 recursions, 1 seed: 72 trials
  published        the budgets and sizes of Bae et al. 2025 (arXiv 2507.10524), 2 to 4 recursions

Sequences, recipe and data are those of each size's own preset. The tiny ones have batches of 256
tokens: at so few FLOPs, larger ones are too few updates.
"""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, mor, vanilla
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "tiny_recursions", "published")
WIDTHS = (8, 16, 24, 32)
BUDGETS = (2.5e10, 5e10, 1e11)
SIZES = ("135m", "360m", "730m", "1.7b")
PUBLISHED_BUDGETS = (2e18, 5e18, 16.5e18)


def get_config(preset: str) -> ConfigDict:
    return vanilla.get_config("360m" if preset == "published" else "tiny")


def sweep(add: Callable[..., None], preset: str) -> None:
    if preset == "published":
        for trial in grids.product(list(published()), budgets(PUBLISHED_BUDGETS)):
            add(**spent(trial, warmup=0.006))
        return
    counts = (2, 3, 4) if preset == "tiny_recursions" else (3,)
    systems = [*([unshared("tiny")] if preset == "tiny" else []), *of_size("tiny", counts)]
    seeds = axes.seeds(3 if preset == "tiny" else 1)
    recipe = {**axes.BRIEF, "train.batch_size": 2, "optimizer.learning_rate": 5e-3}
    grid = grids.product(systems, budgets(BUDGETS), axes.widths(WIDTHS), seeds, [recipe])
    for trial in grid:
        add(**spent(trial, warmup=0.05))


def published() -> Iterator[axes.Overrides]:
    for size in SIZES:
        for each in (unshared(size), *of_size(size, (2, 3, 4))):
            yield {**each, "labels": {**each["labels"], "size": size}}


def budgets(flops: tuple[float, ...]) -> list[axes.Overrides]:
    return [{"labels": {"budget": each}} for each in flops]


def spent(trial: axes.Overrides, warmup: float) -> axes.Overrides:
    return axes.spending(trial["labels"]["budget"], trial, warmup)


def unshared(size: str) -> axes.Overrides:
    return {"config": f"vanilla:{size}", "labels": {"system": "vanilla", "recursions": 1}}


def of_size(size: str, counts: tuple[int, ...]) -> Iterator[axes.Overrides]:
    """Yields the recursive models of one size."""
    layers = {3: base.MIDDLE_THREE, 4: mor.MIDDLE_FOUR}
    for recursions in counts:
        labels = lambda system, count=recursions: {"system": system, "recursions": count}
        all_layers = layers.get(recursions, {}).get(size, base.SHAPES[size]["num_layers"])
        fields = {"depth.num_recursions": recursions, "num_layers": all_layers}
        yield {"config": f"recursive:{size}", **fields, "labels": labels("recursive")}
        variant = "" if recursions == 3 else f"_r{recursions}"
        yield {"config": f"mor:{size}{variant}", "labels": labels("mor")}
