r"""More computation with the same weights: recursions of two blocks, or parallel streams of them.

  recursia sweep --config=sweeps/streams:tiny --workdir=sweeps/streams       # 15 trials
  recursia sweep report --workdir=sweeps/streams

Two blocks are applied once, recur 2 or 4 times (recursive), or run in 2 or 4 parallel copies with
prefixes of 4 tokens (Chen et al. 2025, arXiv 2505.10475). Copies have a narrower hidden width, by
which parameters are equal within 1 %, prefixes and average included; so FLOPs per token are 3 %
fewer than those of as many recursions with 2 copies, and 10 % fewer with 4. `tiny` gives every
trial the same training FLOPs, so that more of either take fewer steps; `tiny_tokens` gives the same
tokens.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import parscale
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "tiny_tokens")
BLOCKS = 2
MLP = {2: 168, 4: 144}  # hidden width by the number of copies; 192 in one


def get_config(preset: str) -> ConfigDict:
    return parscale.get_config(preset.partition("_")[0])


def sweep(add: Callable[..., None], preset: str) -> None:
    size, _, is_by_tokens = preset.partition("_")
    _, common = axes.sized(size, num_seeds=3)
    for shared in common:
        trials = [
            axes.spending(axes.TINY, trial, axes.WARMUP[size])
            for trial in grids.product(models(size), [shared])
        ]
        lengths = ("train.num_steps", "schedule.warmup_steps")
        same = {name: trials[0][name] for name in lengths} if is_by_tokens else {}
        for trial in trials:
            add(**{**trial, **same})


def models(size: str) -> list[axes.Overrides]:
    recursive = [
        {
            "config": f"recursive:{size}",
            "sharing": "cycle",
            "num_layers": BLOCKS * count,
            "depth.num_recursions": count,
            "labels": {"more": "recursions", "count": count},
        }
        for count in (1, 2, 4)
    ]
    parallel = [
        {
            "config": f"parscale:{size}",
            "num_layers": BLOCKS,
            "parallel.num_copies": count,
            "block.feedforward.mlp_dim": width,
            "labels": {"more": "streams", "count": count},
        }
        for count, width in MLP.items()
    ]
    return recursive + parallel
