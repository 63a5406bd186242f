r"""SReT: blocks recur in place, with factors of stream and branch and a private thin MLP.

  recursia train --config=sret:tiny --workdir=runs/sret_tiny              # a minute on 2 cores
  recursia train --config=sret:tiny ... --config.sharing=cycle
  recursia train --config=sret:360m --workdir=runs/sret_360m --config.data.path=DIR

Sliced Recursive Transformer (Shen et al. 2021, arXiv 2111.05297), published for images, as a causal
language model on the Llama block: each block is applied twice in a row, and each time a thin MLP as
wide as the residual stream follows, of this application alone. The slices of tokens, permuted at
random between applications, are left out: they are not causal. Sizes and recipe are those of the
other systems. Meant for v5e:4x4 (135m) and v5e:8x8 (360m).

Measured, tiny on 2 cores in float32: validation loss 2.11 nats per token after 300 steps.
Checked against: equations in NumPy.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "135m", "360m")
PRIVATE = dict(thin_mlp="recursion+block", thin_residual="recursion+block")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.block.kind = "scaled_residual"
    config.model.depth.num_recursions = 2
    config.model.sharing = "sequence"
    config.model.varies = PRIVATE
    return config.lock()
