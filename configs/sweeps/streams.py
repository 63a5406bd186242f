r"""More computation with the same weights: recursions of two blocks, or parallel streams of them.

  recursia sweep --config=sweeps/streams:tiny --workdir=sweeps/streams       # 15 trials
  recursia sweep --config=sweeps/streams:tiny_rates --workdir=sweeps/streams_rates    # 60 trials
  recursia sweep report --workdir=sweeps/streams

Two blocks are applied once, recur 2 or 4 times (recursive), or run in 2 or 4 parallel copies with
prefixes of 4 tokens (Chen et al. 2025, arXiv 2505.10475). Copies have a narrower hidden width, by
which parameters are equal within 1 %, prefixes and average included; so FLOPs per token are 3 %
fewer than those of as many recursions with 2 copies, and 10 % fewer with 4. `tiny` gives every
trial the same training FLOPs, so that more of either take fewer steps; `tiny_tokens` gives the same
tokens. `tiny_rates` has one or two of either at several learning rates and with more seeds, and so
have larger sizes, with a quarter of their blocks and prefixes of 48 tokens.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import base, parscale
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "tiny_tokens", "tiny_rates", "135m", "360m")
PREFIX = 48  # tokens, of the paper


def get_config(preset: str) -> ConfigDict:
    return parscale.get_config(preset.partition("_")[0])


def sweep(add: Callable[..., None], preset: str) -> None:
    size, _, form = preset.partition("_")
    if form == "rates" or size != "tiny":
        for trial in axes.asked(size, [each for each in models(size) if few(each)], share=0.5):
            add(**trial)
        return
    _, common = axes.sized(size, num_seeds=3)
    for shared in common:
        trials = [
            axes.spending(axes.TINY, trial, axes.WARMUP[size])
            for trial in grids.product(models(size), [shared])
        ]
        lengths = ("train.num_steps", "schedule.warmup_steps")
        same = {name: trials[0][name] for name in lengths} if form else {}
        for trial in trials:
            add(**{**trial, **same})


def few(model: axes.Overrides) -> bool:
    return model["labels"]["count"] <= 2


def models(size: str) -> list[axes.Overrides]:
    blocks = base.SHAPES[size]["num_layers"] // 4
    recursive = [
        {
            "config": f"recursive:{size}",
            "sharing": "cycle",
            "num_layers": blocks * count,
            "depth.num_recursions": count,
            "labels": {"more": "recursions", "count": count},
        }
        for count in (1, 2, 4)
    ]
    equal = axes.parameters(recursive[0])
    plain = {"config": f"parscale:{size}"}
    if size not in parscale.PRESETS:
        plain = {"config": f"vanilla:{size}", "parallel.prefix_tokens": PREFIX}
    parallel = [
        {
            **plain,
            "num_layers": blocks,
            "parallel.num_copies": count,
            "labels": {"more": "streams", "count": count},
        }
        for count in (2, 4)
    ]
    width = "block.feedforward.mlp_dim"
    return recursive + [axes.of_parameters(equal, each, width, 8) for each in parallel]
