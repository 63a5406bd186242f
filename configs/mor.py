r"""Mixture-of-Recursions, expert choice: three recursions, each keeps the best-scored tokens.

  recursia train --config=mor:tiny --workdir=runs/mor_tiny                # a minute on 2 cores
  recursia train --config=mor:360m --workdir=runs/mor_360m --config.data.path=DIR
  recursia train --config=mor:360m ... --config.model.kv.kv_sharing=first_recursion

Bae et al. 2025, arXiv 2507.10524: sharing "middle_cycle", capacities (1, 2/3, 1/3), sigmoid router
with alpha 0.1, auxiliary loss 0.001; 14,161 steps of 2.1 M tokens equal the 9,438 of the vanilla
model in FLOPs, as the authors count them (`recursia budget`).
"""

from ml_collections import ConfigDict
from recursia.configs import base


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=14161)
    config.model.depth = dict(kind="expert_choice", num_recursions=3)
    config.model.sharing = "middle_cycle"
    config.model.num_layers = base.MIDDLE_THREE.get(preset, config.model.num_layers)
    return config.lock()
