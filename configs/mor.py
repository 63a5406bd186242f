r"""Mixture-of-Recursions: a router chooses how many recursions of a shared stack a token takes.

  recursia train --config=mor:tiny --workdir=runs/mor_tiny                # a minute on 2 cores
  recursia train --config=mor:tiny_token --workdir=runs/mor_tiny_token    # the same
  recursia train --config=mor:360m --workdir=runs/mor_360m --config.data.path=DIR

Bae et al. 2025, arXiv 2507.10524. A preset is a size, which may be followed by a variant. Without
one it is expert choice with three recursions, sharing "middle_cycle", capacities (1, 2/3, 1/3), a
sigmoid router with alpha 0.1 and auxiliary loss 0.001.

  SIZE           14,161 steps of 2.1 M tokens
  SIZE_token     14,161   token choice: softmax router, balancing loss 0.1, z-loss 1e-5
  SIZE_kv_share  14,672   later recursions read the first one's keys and values
  SIZE_r2        12,619   two recursions
  SIZE_r4        14,216   four

At 360m each has the FLOPs of 9,438 steps of the vanilla model, as the authors count them (`recursia
budget`). Meant for v5e:4x4 (135m), v5e:8x8 (360m) and v5e:16x16 (730m, 1.7b).

Measured at the FLOPs of 200 steps of vanilla:tiny, which has 3.09 bits per byte of the bundled
validation text, two seeds: tiny 3.41 (0.17 apart), tiny_token 3.12.
Checked against: authors' code, 4 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base

STEPS = {"": 14161, "token": 14161, "kv_share": 14672, "r2": 12619, "r4": 14216}
# As base.MIDDLE_THREE, for four recursions.
MIDDLE_FOUR = {"demo": 10, "tiny": 10, "360m": 34, "1.7b": 22}
PRESETS = tuple(f"{size}_{name}".rstrip("_") for name in STEPS for size in base.PRESETS)


def get_config(preset: str) -> ConfigDict:
    size, _, variant = preset.partition("_")
    config = base.get_config(size, num_steps=STEPS[variant])
    recursions = {"r2": 2, "r4": 4}.get(variant, 3)
    config.model.depth = dict(kind="expert_choice", num_recursions=recursions)
    config.model.sharing = "middle_cycle"
    layers = {3: base.MIDDLE_THREE, 4: MIDDLE_FOUR}.get(recursions, {})
    config.model.num_layers = layers.get(size, config.model.num_layers)
    if variant == "token":
        config.model.depth = dict(kind="token_choice", num_recursions=3, z_loss_weight=1e-5)
    if variant == "kv_share":
        config.model.kv.kv_sharing = "first_recursion"
    return config.lock()
