r"""Llama with unshared layers: the baseline of the recursive models.

  recursia train --config=vanilla:tiny --workdir=runs/vanilla_tiny        # a minute on 2 cores
  recursia train --config=vanilla:360m --workdir=runs/vanilla_360m --config.data.path=DIR

Touvron et al. 2023, arXiv 2302.13971; sizes and recipe of the baseline of Mixture-of-Recursions
(Bae et al. 2025, arXiv 2507.10524): 9,438 steps of 2.1 M tokens. Meant for v5e:4x4 (135m), v5e:8x8
(360m) and v5e:16x16 (730m, 1.7b).

Measured, tiny after 200 steps, two seeds: 3.09 bits per byte of the bundled validation text.
Checked against: the authors' block.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = base.PRESETS


def get_config(preset: str) -> ConfigDict:
    return base.get_config(preset, num_steps=9438).lock()
