r"""Embeddings at equal training FLOPs: tables, and waves of the token's id.

  recursia sweep --config=sweeps/embeddings:tiny --workdir=sweeps/embeddings      # 15 trials
  recursia sweep report --workdir=sweeps/embeddings

All on the vanilla model: the table tied to the head or not; factorised to an eighth of the width,
by a projection or by a layer in which tokens attend to those before (SAFE); and `pete`.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import pete
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
SAFE = {
    "embed.kind": "self_attentive",
    "embed.table_dim": 8,
    "embed.mixer.kind": "grouped_query",
    "embed.mixer.num_heads": 2,
    "embed.mixer.num_kv_heads": 2,
    "embed.mixer.head_dim": 4,
}


def get_config(preset: str) -> ConfigDict:
    return pete.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    flops, common = axes.sized(preset, num_seeds=3)
    plain = {"config": f"vanilla:{preset}"}
    models = [
        {**plain, "labels": {"embedding": "table"}},
        {**plain, "embed.is_tied": False, "labels": {"embedding": "table and head"}},
        {**plain, "embed.factor_dim": 8, "labels": {"embedding": "factorised"}},
        {**plain, **SAFE, "labels": {"embedding": "self-attentive"}},
        {"config": f"pete:{preset}", "labels": {"embedding": "waves"}},
    ]
    for trial in grids.product(models, common):
        add(**axes.spending(flops, trial, axes.WARMUP[preset]))
