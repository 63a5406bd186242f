r"""You only cache once: sliding windows in the lower half, one layer's keys for the upper half.

  recursia train --config=yoco:tiny --workdir=runs/yoco_tiny              # a minute on 2 cores
  recursia train --config=yoco:1.1b --workdir=runs/yoco_1.1b --config.data.path=DIR

Sun et al. 2024, arXiv 2405.05254, with sliding-window attention in the lower half, not their gated
retention. 1.1b has TinyLlama's shape and 100 B tokens of SlimPajama as in Wu et al. 2024 (arXiv
2410.14442); the rest of the recipe is that of the other systems here. Meant for v5e:16x16.

Measured, tiny after 200 steps: 3.12 bits per byte of the bundled validation text.
Checked against: authors' code, 1 file.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "1.1b")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=47_684)
    config.model.kv = dict(kv_sharing="upper_half", window=32 if preset == "tiny" else 1024)
    if preset == "1.1b":
        config.model.update(vocab_size=32_000, embed=dict(is_tied=False))
        config.data.path = ("data/slimpajama",)
    return config.lock()
