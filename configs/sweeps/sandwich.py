r"""A sandwich beside one block for all, at equal unique parameters and equal training FLOPs.

  recursia sweep --config=sweeps/sandwich:tiny --workdir=sweeps/sandwich          # 9 trials
  recursia sweep report --workdir=sweeps/sandwich

Layers of one width, with a table and norms of each layer. "sandwich" has a first and a last layer
of their own and one block for the six between them. "one for all" has one block for all eight, with
the parameters of these three by a larger hidden width. "three, unshared" has them once each; their
norms are fewer, by 1 % of the parameters.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import subformer
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    return subformer.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    heads = dict(num_heads=4, num_kv_heads=4, head_dim=16)
    plain = {
        "config": f"subformer:{preset}",
        "embed.kind": "table",
        "end_sizes": (),
        "block.embed_dim": 64,
        "block.feedforward.mlp_dim": 192,
        **{f"block.mixer.{name}": value for name, value in heads.items()},
    }
    one = {"sharing": "cycle", "depth.num_recursions": 8, "block.feedforward.mlp_dim": 835}
    few = {"sharing": "none", "depth.num_recursions": 1, "num_layers": 3}
    models = [
        {**plain, "labels": {"layers": "sandwich"}},
        {**plain, **one, "labels": {"layers": "one for all"}},
        {**plain, **few, "labels": {"layers": "three, unshared"}},
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
