r"""Neural ODE: a shared block that runs in few large steps or many small ones, trained on several.

  recursia train --config=neural_ode:tiny --workdir=runs/neural_ode_tiny  # a minute on 2 cores
  recursia eval --workdir=runs/neural_ode_tiny --depths=4,6,8,12
  recursia eval --workdir=runs/neural_ode_tiny --depths=4 --config.depth.method=heun

Chen et al. 2023, arXiv 2310.12818, on the Llama block: all layers share one block, and each
training step draws half, three quarters or all of the number of layers as its number of recursions,
of twice, 4/3 times or the same size. Sizes and recipe are those of the other systems. Meant for
v5e:4x4 (135m) and v5e:8x8 (360m).

Measured, tiny on 2 cores in float32: validation loss 2.64 nats per token after 300 steps.
Checked against: orders of convergence, the fixed model bit for bit.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "135m", "360m")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    most = config.model.num_layers
    sampled = (most // 2, 3 * most // 4, most)
    config.model.depth = dict(kind="integration", num_recursions=most, sampled=sampled)
    config.model.sharing = "cycle"
    return config.lock()
