"""Axes that several sweeps have: widths, seeds, and budgets of training FLOPs."""

from collections.abc import Iterable
from typing import Any

from recursia import accounting, budget, config
from recursia import sweep as grids
from recursia.sweep import trial as trials
from recursia.sweep.spending import steps_for

Overrides = dict[str, Any]
# Training FLOPs: the smallest and the largest of Bae et al. 2025 (arXiv 2507.10524), and 190 steps
# of 512 tokens of vanilla:tiny.
PUBLISHED = {"135m": 2e18, "360m": 16.5e18}
TINY = 3.2e11
# Learning rates and number of seeds of a question whose answer may depend on them.
RATES = {
    "tiny": (5e-4, 1e-3, 2e-3, 4e-3),
    "135m": (1.5e-3, 3e-3, 6e-3),
    "360m": (1e-3, 2e-3, 4e-3),
}
SEEDS = {"tiny": 5, "135m": 3, "360m": 3}
WARMUP = {"tiny": 0.05, "135m": 0.006, "360m": 0.006}  # of the steps
# For runs of less than a minute: one validation, at the end; no samples, and no event files. Losses
# of batches of a few hundred tokens differ so much that none is a spike.
BRIEF: Overrides = {
    "checkpoint.every_steps": 0,
    "divergence.deviations": 0,
    "eval.every_steps": 0,
    "eval.num_batches": 32,
    "eval.prompts": "",
    "log.sinks": (),
}


def widths(embed_dims: Iterable[int]) -> list[Overrides]:
    """Returns widths of the tiny models: 2 heads, and a hidden width of 3 times the width."""
    return [
        {
            "block.embed_dim": width,
            "block.mixer.num_heads": 2,
            "block.mixer.num_kv_heads": 1,
            "block.mixer.head_dim": width // 2,
            "block.feedforward.mlp_dim": 3 * width,
            "labels": {"width": width},
        }
        for width in embed_dims
    ]


def seeds(count: int, first: int = 0) -> list[Overrides]:
    """Returns seeds of the parameters and of the order of the data, which change together."""
    return [
        {"train.seed": seed, "data.seed": seed, "labels": {"seed": seed}}
        for seed in range(first, first + count)
    ]


def spending(flops: float, trial: Overrides, warmup: float) -> Overrides:
    """Returns a trial with the steps that spend a budget.

    Args:
      flops: of the whole training.
      trial: its overrides, its labels and its base `config`.
      warmup: the part of the steps that is warm-up, if the trial does not say.
    """
    fields = {name: value for name, value in trial.items() if name not in ("config", "labels")}
    steps = steps_for(flops, trial["config"], fields)
    return {"schedule.warmup_steps": round(warmup * steps), **trial, "train.num_steps": steps}


def rates(values: Iterable[float]) -> list[Overrides]:
    """Returns learning rates."""
    label = lambda rate: {"learning_rate": rate}
    return [{"optimizer.learning_rate": rate, "labels": label(rate)} for rate in values]


def asked(size: str, models: list[Overrides], share: float = 2.0) -> list[Overrides]:
    """Returns the trials of a question: models by rates and seeds, at equal training FLOPs.

    Args:
      size: of the models.
      models: their overrides, with labels.
      share: of the usual FLOPs, at tiny size: a few blocks take some 200 steps until they predict
        more than frequencies.
    """
    flops = PUBLISHED.get(size, TINY * share)
    spent = [spending(flops, {**brief(size), **model}, WARMUP[size]) for model in models]
    return grids.product(spent, rates(RATES[size]), seeds(SEEDS[size]))


def parameters(trial: Overrides) -> int:
    """Returns the unique parameters of a trial's model."""
    fields = {n: trials.text(v) for n, v in trial.items() if n not in ("config", "labels")}
    run = config.load(trial["config"], fields)
    return accounting.unique_parameters(run.model.sized(budget.vocab_size(run)))


def of_parameters(target: int, trial: Overrides, field: str, unit: int = 1) -> Overrides:
    """Returns a trial with the whole number in a field that makes its parameters nearest a target.

    Args:
      target: unique parameters.
      trial: its overrides and its base `config`.
      field: in which the parameters are linear, such as a rank.
      unit: of which the number is a multiple.
    """
    one, two = (parameters({**trial, field: units * unit}) for units in (1, 2))
    return {**trial, field: unit * max(1, round(1 + (target - one) / (two - one)))}


def sized(preset: str, num_seeds: int = 2) -> tuple[float, list[Overrides]]:
    """Returns the training FLOPs of each trial at a size, and what they have in common by seed.

    Only the tiny size has several seeds.
    """
    if preset != "tiny":
        return PUBLISHED[preset], [{}]
    return TINY, grids.product([brief(preset)], seeds(num_seeds))


def brief(size: str) -> Overrides:
    """Returns what keeps runs of the tiny size short; nothing for other sizes."""
    return {**BRIEF, "train.batch_size": 4} if size == "tiny" else {}
