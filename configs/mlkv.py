r"""Multi-layer key-value sharing: a few layers make keys, which the layers after them read.

  recursia train --config=mlkv:tiny --workdir=runs/mlkv_tiny              # a minute on 2 cores
  recursia train --config=mlkv:160m --workdir=runs/mlkv_160m --config.data.path=DIR

Zuhri et al. 2024, arXiv 2406.09297, on the block of GPT-NeoX. 160m has Pythia's shape, with keys in
4 of its 12 layers. The paper continues training Pythia; this starts from scratch with the recipe of
the other systems. `recursia convert recursive --init=average` merges keys as the paper does. Meant
for v5e:4x4.

Measured, tiny after 200 steps: 3.34 bits per byte of the bundled validation text, with 3 layers of
8 that make keys.
Checked against: authors' code, 1 file.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

# Layers, width, heads, hidden width, layers that make keys.
SHAPES = {"tiny": (8, 64, 4, 256, 3), "160m": (12, 768, 12, 3072, 4)}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    layers, width, heads, hidden, makers = SHAPES[preset]
    config = ConfigDict(dict(topology="v5e:1x1" if preset == "tiny" else "v5e:4x4"))
    config.model = dict(
        num_layers=layers,
        block=blocks.neox(
            embed_dim=width,
            mlp_dim=hidden,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
        ),
        depth=dict(kind="fixed", num_recursions=1),
        sharing="none",
        kv=dict(kv_sharing=f"spread/{makers}"),
        embed=dict(is_tied=False),
    )
    recipe = base.tiny if preset == "tiny" else base.published
    recipe(config, num_steps=9438)
    if preset == "160m":
        config.model.vocab_size = 50_304
    return config.lock()
