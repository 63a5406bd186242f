r"""WideNet: one attention and one mixture of experts for all steps, with norms of each step.

  recursia train --config=widenet:tiny --workdir=runs/widenet_tiny        # minutes on 2 cores
  recursia train --config=widenet:tiny ... --config.model.varies.norms=one   # norms shared too
  recursia train --config=widenet:tiny_grouped --workdir=runs/widenet_tiny_grouped

Xue et al. 2021, arXiv 2107.11817, as a causal language model: four experts, of which a token takes
two, and a load balancing loss of weight 0.01. The published capacity of an expert is
`--config.model.block.capacity=1.2`; by default it is unlimited and no token is dropped.
`tiny_grouped` shares as the Parameter-Efficient Conformer (Bai et al. 2022, arXiv 2209.08326) does,
on the same block: adjacent steps share attention and experts, and each step has its own norms and
router. The papers' models are not language models; there are no presets of their size.

Measured, tiny after 134 steps, two seeds: 3.68 bits per byte of the bundled validation text.
Checked against: authors' code for images, 1 file.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

PRESETS = ("tiny", "tiny_grouped")


def get_config(preset: str) -> ConfigDict:
    steps, width, private = 8, 64, "recursion+block"
    config = ConfigDict(dict(topology="v5e:1x1"))
    config.model = dict(
        num_layers=steps,
        block=blocks.widenet(
            embed_dim=width,
            num_heads=4,
            head_dim=16,
            num_experts=4,
            top_k=2,
            expert_dim=256,
            init_std=0.1,  # with 0.02 the steps of so narrow a block added almost nothing
        ),
        depth=dict(kind="fixed", num_recursions=steps),
        sharing="cycle",
        varies=dict(norms=private),
        # The outputs of one block add up over the steps: a small embedding would vanish in the sum.
        embed=dict(scale=width**0.5),
    )
    if preset == "tiny_grouped":
        config.model.depth.num_recursions = 4  # steps of a group
        config.model.sharing = "sequence"
        config.model.varies.router = private
    base.tiny(config, num_steps=300)
    return config.lock()
