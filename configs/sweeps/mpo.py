r"""One shared layer at equal training FLOPs: tied, with adapters, or with private tensors.

  recursia sweep --config=sweeps/mpo:tiny --workdir=sweeps/mpo       # 9 trials
  recursia sweep report --workdir=sweeps/mpo

Six steps of one layer (Liu et al. 2023, arXiv 2303.16753). LoRA of rank 6 has 7,296 private numbers
in each step, auxiliary tensors have 7,072. The products that make matrices are not counted.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import mpo
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
STEPS = 6
KINDS = {"tied": {}, "lora": {"weights.rank": 6}, "mpo": {}}


def get_config(preset: str) -> ConfigDict:
    return mpo.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    common = {**axes.BRIEF, "train.batch_size": 4}
    models = [
        {
            "config": f"mpo:{preset}",
            "num_layers": STEPS,
            "depth.num_recursions": STEPS,
            "weights.kind": kind,
            **own,
            "labels": {"weights": kind},
        }
        for kind, own in KINDS.items()
    ]
    for trial in grids.product(models, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
