r"""MASA: queries, keys and values of every layer as combinations of a few shared matrices.

  recursia train --config=masa:tiny --workdir=runs/masa_tiny              # a minute on 2 cores
  recursia train --config=masa:tiny ... --config.weights.names=query,key,value,out
  recursia train --config=masa:360m --workdir=runs/masa_360m --config.data.path=DIR

Matrix atom sharing (arXiv 2508.04581) in its variant MASA-QKV: each of three projections has as
many atoms as a third of the layers; all other matrices are private to a layer. Coefficients are
parameters here, not outputs of a network as published. The widths of the published 110M, 335M and
729M models are not known: sizes and recipe are those of the vanilla model. Meant for v5e:4x4
(135m), v5e:8x8 (360m) and v5e:16x16 (730m, 1.7b).

Measured, tiny on 2 cores in float32: validation loss 2.08 nats per token after 300 steps.
Checked against: tied and vanilla models, bit for bit.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = base.PRESETS


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.weights = dict(kind="atoms", num_atoms=max(1, config.model.num_layers // 3))
    return config.lock()
