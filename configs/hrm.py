r"""HRM-Text: low blocks recur inside recursions of high blocks; the gradient is truncated.

  recursia train --config=hrm:tiny --workdir=runs/hrm_tiny               # a minute on 2 cores
  recursia train --config=hrm:1b --workdir=runs/hrm_1b --config.data.path=DIR

The two levels are those of the Hierarchical Reasoning Model (Wang et al. 2025, arXiv 2506.21734).
Each of two high cycles has three low recursions and a high one; the gradient goes through the last
low recursion of the first cycle and the last two of the second. Blocks are pre-norm with gated
attention; norms have no weights, and every recursion ends in one. 1b is the released size: 16 low
and 16 high layers of width 1536. Data and recipe are those of the other systems here. The released
model attends to its prompt in both directions; this one is causal. Meant for v5e:16x16.

Measured, tiny (a low and a high block, 8 recursions) on 2 cores in float32: validation loss 2.054
nats per token after 300 steps.
Checked against: authors' code, 1 file.
"""

from ml_collections import ConfigDict

from recursia.configs import base

HIGH, LOW = 2, 3
# Layers of a level, width, heads and hidden width.
SHAPES = {
    "tiny": (1, 64, 4, 160),
    "1b": (16, 1536, 12, 4096),
}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    layers, width, heads, hidden = SHAPES[preset]
    config = ConfigDict(dict(topology="v5e:1x1" if preset == "tiny" else "v5e:16x16"))
    recursions = HIGH * (LOW + 1)
    config.model = dict(
        num_layers=recursions * layers,
        block=dict(
            kind="pre_norm",
            embed_dim=width,
            norm="unscaled",
            norm_eps=1e-6,
            mixer=dict(
                kind="grouped_query",
                num_heads=heads,
                num_kv_heads=heads,
                head_dim=width // heads,
                is_gated=True,
            ),
            feedforward=dict(kind="swiglu", mlp_dim=hidden),
        ),
        depth=dict(kind="nested", num_recursions=recursions, high_cycles=HIGH, low_backprop=(2,)),
        sharing="cycle",
        loop_norm="each",
        embed=dict(is_tied=False, scale=50.0),  # 1 / init_std
    )
    (base.tiny if preset == "tiny" else base.published)(config, num_steps=9438)
    if preset == "1b":
        config.model.vocab_size = 151_808
    return config.lock()
