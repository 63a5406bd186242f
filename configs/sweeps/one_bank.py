r"""Experts that serve attention too, at equal parameters and equal training FLOPs.

  recursia sweep --config=sweeps/one_bank:tiny --workdir=sweeps/one_bank          # 9 trials
  recursia sweep report --workdir=sweeps/one_bank

"both" is UMoE (Yang et al. 2025, arXiv 2505.07260). The others have attention of four heads and
experts in the feed-forward alone, one more in each layer, which makes as many parameters. In
"feed-forward" a token takes three of them, as there, and for the same FLOPs more tokens are seen;
in "feed-forward, 8 chosen" it takes so many that a token costs the same, too.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import umoe
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return umoe.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    experts = dict(num_experts=13, expert_dim=48, shared_dim=48, is_gated=False)
    balance = dict(balance_over="sequence", balance_loss_weight=1e-3)
    alone = {
        "config": f"omni:{preset}",  # for its kinds of mixer and feed-forward
        "varies": (),
        "optimizer.learning_rate": 3e-3,
        "block.norm_eps": 1e-6,
        "block.mixer.num_kv_heads": 4,
        **{f"block.feedforward.{name}": value for name, value in (experts | balance).items()},
    }
    chosen = {"feed-forward": 3, "feed-forward, 8 chosen": 8}
    models = [{"config": f"umoe:{preset}", "labels": {"experts": "both"}}]
    models += [
        {**alone, "block.feedforward.top_k": k, "labels": {"experts": name}}
        for name, k in chosen.items()
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
