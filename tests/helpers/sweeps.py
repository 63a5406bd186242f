"""Results of sweeps that were never run, of known constants."""

import itertools

import numpy as np

from recursia.sweep.results import Result

SIZES = (1e4, 2e4, 4e4, 8e4, 16e4)
BUDGETS = (1e10, 2e10, 4e10, 8e10, 16e10)
FLOOR, FACTOR, EXPONENT = 1.2, 120.0, -0.2  # of the least loss over FLOPs
BEST, GROWTH = 3e4, 0.5  # the best size at 1e10 FLOPs, and the exponent of its growth


def result(name, labels, loss, *, size=1000, flops=1e9, state="finished", overrides=None):
    """Returns one result; a loss of None is of a trial that diverged."""
    metrics = {} if loss is None else {"validation_loss": loss}
    return Result(
        name=name,
        state="diverged" if loss is None else state,
        config="some:tiny",
        overrides=overrides or {},
        labels=labels,
        steps=10,
        tokens=1000,
        training_flops=flops,
        unique_parameters=int(size),
        seconds=1.0,
        metrics=metrics,
        curve=[],
        why="" if loss is not None else "step 3: the loss is nan",
    )


def best_size(flops):
    """Returns the size of the least loss at a budget."""
    return BEST * (flops / 1e10) ** GROWTH


def least(flops):
    """Returns the least loss at a budget."""
    return FLOOR + FACTOR * flops**EXPONENT


def iso_flop(noise, *, systems=("one",), budgets=BUDGETS, sizes=SIZES, seeds=3, key=0):
    """Returns results whose losses are parabolas at each budget, with noise."""
    draw, found = np.random.default_rng(key), []
    grid = itertools.product(systems, budgets, sizes, range(seeds))
    for index, (system, flops, size, seed) in enumerate(grid):
        distance = np.log(size / best_size(flops))
        loss = least(flops) + 0.05 * distance**2 + noise * draw.normal()
        labels = {"system": system, "budget": flops, "width": size // 100, "seed": seed}
        found.append(result(f"t{index:04}", labels, float(loss), size=size, flops=flops))
    return found


def rates(noise, *, widths=(32, 64, 128), rates=(1e-3, 2e-3, 4e-3, 8e-3, 16e-3), key=0):
    """Returns results by learning rate, whose best rate falls as one over the width."""
    draw, found = np.random.default_rng(key), []
    for index, (width, rate) in enumerate(itertools.product(widths, rates)):
        loss = 2.0 + 0.1 * np.log(rate / (0.256 / width)) ** 2 + noise * draw.normal()
        labels = {"learning_rate": rate, "width": width}
        found.append(result(f"t{index:04}", labels, float(loss), size=width**2))
    return found
