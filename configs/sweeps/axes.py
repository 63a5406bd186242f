"""Axes that several sweeps have: widths, seeds, and budgets of training FLOPs."""

from collections.abc import Iterable
from typing import Any

from recursia import sweep as grids
from recursia.sweep.spending import steps_for

Overrides = dict[str, Any]
# Training FLOPs: the smallest and the largest of Bae et al. 2025 (arXiv 2507.10524), and 190 steps
# of 512 tokens of vanilla:tiny.
PUBLISHED = {"135m": 2e18, "360m": 16.5e18}
TINY = 3.2e11
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


def sized(preset: str, num_seeds: int = 2) -> tuple[float, list[Overrides]]:
    """Returns the training FLOPs of each trial at a size, and what they have in common by seed.

    Only the tiny size has several seeds.
    """
    if preset != "tiny":
        return PUBLISHED[preset], [{}]
    return TINY, grids.product([{**BRIEF, "train.batch_size": 4}], seeds(num_seeds))
