r"""Neural parameter allocation search: matrices of all layers as sums of slices of a smaller store.

  recursia train --config=npas:tiny --workdir=runs/npas_tiny              # a minute on 2 cores
  recursia train --config=npas:tiny ... --config.weights.budget=0.3

Plummer et al. 2020, arXiv 2006.10598 (shapeshifter networks): the matrices of attention, and those
of the feed-forward, have a store of half their numbers. Every matrix is a combination of two
templates, slices of it, with coefficients of its own. Groups of layers are given here, not learned,
and templates are never interpolated. Sizes and recipe are those of the vanilla model.

Measured, tiny on 2 cores in float32: validation loss 2.40 nats per token after 300 steps;
vanilla:tiny has 2.05.
Checked against: vanilla and tied models.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("demo", "tiny")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.weights = dict(kind="templates", budget=0.5)
    return config.lock()
