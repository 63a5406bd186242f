r"""Looped language model: one stack in four recursions, and a gate that learns when to stop.

  recursia train --config=ouro:tiny --workdir=runs/ouro_tiny             # a minute on 2 cores
  recursia train --config=ouro:1.4b --workdir=runs/ouro_1.4b --config.data.path=DIR

then the gate alone, from the trained model:

  recursia train --config=ouro:tiny --workdir=runs/ouro_gate --config.depth.stage=2 \
    --config.optimizer.trainable=depth --config.train.init_from=runs/ouro_tiny

Zhu et al. 2025, arXiv 2510.25741. 1.4b and 2.6b have 24 and 48 layers of width 2048; the other
widths are those of the public configuration, and give 2.6b the published 2,667,974,657 parameters.
Data and recipe are those of the other systems here, not the published 7.7 T tokens. Both are meant
for v5p:4x4x8.

Measured, tiny after 174 steps, two seeds: 3.61 bits per byte of the bundled validation text.
Checked against: authors' code, 1 file.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

RECURSIONS = 4
# Layers, width, heads and hidden width.
SHAPES = {
    "tiny": (2, 64, 4, 192),
    "1.4b": (24, 2048, 16, 5632),
    "2.6b": (48, 2048, 16, 5632),
}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    layers, width, heads, hidden = SHAPES[preset]
    config = ConfigDict(dict(topology="v5e:1x1" if preset == "tiny" else "v5p:4x4x8"))
    config.model = dict(
        num_layers=RECURSIONS * layers,
        block=blocks.ouro(
            embed_dim=width,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            mlp_dim=hidden,
        ),
        depth=dict(kind="exit_gate", num_recursions=RECURSIONS),
        sharing="cycle",
        loop_norm="each",
        embed=dict(is_tied=False),
    )
    (base.tiny if preset == "tiny" else base.published)(config, num_steps=9438)
    return config.lock()
