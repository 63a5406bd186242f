r"""Relaxed Recursive Transformer: two recursions of shared layers with LoRA adapters of each step.

  recursia train --config=relaxed:tiny --workdir=runs/relaxed_tiny        # a minute on 2 cores
  recursia train --config=relaxed:2b --workdir=runs/relaxed_2b --config.data.path=DIR
  recursia train --config=relaxed:2b ... --config.depth.num_recursions=3 --config.weights.rank=512

Bae et al. 2024, arXiv 2410.20672: sharing "cycle", adapters at every linear map. The paper starts
from a pretrained model, as `recursia convert recursive` does. `2b` has the widths and depth of the
paper's largest model and its 15 B tokens in sequences of 2048, but this library's block and the
optimizer settings of the other presets. `tiny` ends at a validation loss of 2.12 nats per byte.
Meant for v5e:4x4 (135m), v5e:8x8 (360m), v5e:16x16 (730m, 1.7b) and v6e:16x16 (2b).
Checked against: equations, the paper's parameter counts.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

LARGEST = dict(embed_dim=2048, num_heads=8, num_kv_heads=1, head_dim=256, mlp_dim=16384)
PRESETS = (*base.PRESETS, "tiny_graded", "2b")


def get_config(preset: str) -> ConfigDict:
    sizes = {"2b": "1.7b", "tiny_graded": "tiny"}
    config = base.get_config(sizes.get(preset, preset), num_steps=7153)
    if preset == "2b":
        config.model.update(num_layers=18, vocab_size=256_000)
        config.model.block = blocks.llama(**LARGEST)
        config.topology = "v6e:16x16"
    config.model.depth.num_recursions = 2
    config.model.sharing = "cycle"
    config.model.weights = dict(kind="lora", rank=8 if preset in ("demo", "tiny") else 64)
    if preset == "tiny_graded":  # as many parameters as rank 6 in both recursions
        config.model.weights = dict(kind="graded_lora", rank=8, ranks=(4, 8))
    return config.lock()
