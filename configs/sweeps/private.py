r"""What to give the steps of one block for themselves, at equal private parameters and FLOPs.

  recursia sweep --config=sweeps/private:tiny --workdir=sweeps/private       # 100 trials
  recursia sweep report --workdir=sweeps/private

One block in six steps: tied; with LoRA (Bae et al. 2024, arXiv 2410.20672); with a feed-forward
that is a mixture of LoRAs for all steps (arXiv 2512.12880); with private tensors (MPO, Liu et al.
2023, arXiv 2303.16753); with two sets of atoms of the feed-forward that each step combines (MASA,
arXiv 2508.04581). Ranks are such that a model has as many parameters as MPO's, within 2 %; atoms
come in whole matrices, and at tiny size there are 14 % fewer private parameters.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia.configs import base, recursive
from recursia.configs.sweeps import axes

PRESETS = ("tiny", "135m", "360m")
STEPS = 6


def get_config(preset: str) -> ConfigDict:
    return recursive.get_config(preset)


def sweep(add: Callable[..., None], preset: str) -> None:
    for trial in axes.asked(preset, models(preset)):
        add(**trial)


def models(size: str) -> list[axes.Overrides]:
    one = {"config": f"recursive:{size}", "sharing": "cycle"}
    one |= {"num_layers": STEPS, "depth.num_recursions": STEPS}
    made = {
        "tied": {},
        "mpo": {"weights.kind": "mpo", "varies": (("norms", "recursion+block"),)},
        "lora": {"weights.kind": "lora"},
        "mixture": {
            "block.feedforward.kind": "mixture_of_loras",
            "block.feedforward.feedforward.kind": "swiglu",
            "block.feedforward.feedforward.mlp_dim": base.SHAPES[size]["mlp_dim"],
            "block.feedforward.num_experts": 4,
        },
        "atoms": {
            "weights.kind": "atoms",
            "weights.slot": "mlp",
            "weights.names": ("gate", "up", "down"),
        },
    }
    by = {"lora": "weights.rank", "mixture": "block.feedforward.rank", "atoms": "weights.num_atoms"}
    target = axes.parameters({**one, **made["mpo"]})
    found = {name: {**one, **own} for name, own in made.items()}
    found |= {name: axes.of_parameters(target, found[name], field) for name, field in by.items()}
    return [{**trial, "labels": {"model": name}} for name, trial in found.items()]
