r"""WideNet: one attention and one mixture of experts for all steps, norms private to each.

  recursia train --config=widenet:tiny --workdir=runs/widenet_tiny        # minutes on 2 cores
  recursia train --config=widenet:tiny ... --config.model.varies.norms=one   # norms shared too
  recursia train --config=widenet:tiny_grouped --workdir=runs/widenet_tiny_grouped

Xue et al. 2021, arXiv 2107.11817, as a causal language model: four experts of which a token takes
two, balance loss 0.01. Its places of an expert are `--config.model.block.capacity=1.2`; here none
is needed, for no token is dropped without. `tiny_grouped` is the plan of the Parameter-Efficient
Conformer (Bai et al. 2022, arXiv 2209.08326) on the same block: neighbours share attention and
experts, each step has its own norms and router. The papers' models are not of language; no size of
theirs is here.

Measured, tiny after 134 steps, two seeds: 3.68 bits per byte of the bundled validation text.
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
            init_std=0.1,  # of a block so narrow: with 0.02 its steps added next to nothing
        ),
        depth=dict(kind="fixed", num_recursions=steps),
        sharing="cycle",
        varies=dict(norms=private),
        # One block adds up alike at every step: small embeddings would be lost in the sum.
        embed=dict(scale=width**0.5),
    )
    if preset == "tiny_grouped":
        config.model.depth.num_recursions = 4  # neighbours that share
        config.model.sharing = "sequence"
        config.model.varies.router = private
    base.tiny(config, num_steps=300)
    return config.lock()
