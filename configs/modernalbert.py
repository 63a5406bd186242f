r"""ModernALBERT: adjacent layers share a block whose feed-forward is a mixture of LoRAs.

  recursia train --config=modernalbert:tiny --workdir=runs/modernalbert_tiny   # minutes on 2 cores
  recursia train --config=modernalbert:tiny ... --config.block.num_experts=8
  recursia train --config=modernalbert:tiny ... --config.varies.lora_experts=recursion+block

Mixture of LoRAs (arXiv 2512.12880), as a causal language model on the Llama block: two groups of
four layers, and four experts of rank 8, of which a token takes two and mixes their outputs. A group
shares experts and router as it shares the feed-forward. The paper's models are encoders of widths,
ranks and numbers of experts that are not known: there are no presets of their size.

Measured, tiny on 2 cores in float32: validation loss 2.48 nats per token after 300 steps.
Checked against: equations in NumPy.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny",)


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=300)
    config.model.depth.num_recursions = 4  # layers of a group
    config.model.sharing = "sequence"
    config.model.block.feedforward = dict(
        kind="mixture_of_loras",
        feedforward=config.model.block.feedforward,
        num_experts=4,
        top_k=2,
        rank=8,
    )
    return config.lock()
