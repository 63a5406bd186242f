r"""Keys of the last recursion or of the first, for all recursions, at equal training FLOPs.

  recursia sweep --config=sweeps/whose_keys:tiny --workdir=sweeps/whose_keys     # 60 trials
  recursia sweep report --workdir=sweeps/whose_keys

A quarter of the blocks recurs three times. Each recursion makes keys of its own; or all read those
of the first, as in Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524); or of the last, as in
LCKV (Wu & Tu 2024, arXiv 2405.10637), for which training runs the recursions twice without a
gradient and once with one: a third of the KV cache, but fewer steps at equal FLOPs.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
RECURSIONS = 3
KEYS = {"own": "own", "first": "first_recursion", "last": "last_recursion"}


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    models = [
        {
            "config": f"recursive:{preset}",
            "sharing": "cycle",
            "num_layers": RECURSIONS * (base.SHAPES[preset]["num_layers"] // 4),
            "depth.num_recursions": RECURSIONS,
            "kv.kv_sharing": sharing,
            "kv.num_free_passes": 2,
            "kv.num_trained_passes": 1,
            "labels": {"keys": name},
        }
        for name, sharing in KEYS.items()
    ]
    for trial in axes.asked(preset, models):
        add(**trial)
