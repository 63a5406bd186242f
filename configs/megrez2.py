r"""Megrez2: groups of layers share experts; a router reads what the layer before it read.

  recursia train --config=megrez2:tiny --workdir=runs/megrez2_tiny        # minutes on 2 cores
  recursia train --config=megrez2:tiny ... --config.varies.experts=block  # private experts
  recursia train --config=megrez2:tiny_dense ...                          # a first layer without

Li et al. 2025, arXiv 2507.17728: attention, norms, routers and the experts that are always on
belong to a layer; the others to a group of layers, here of two, published of three. A router reads
the states that the feed-forward of the layer before read, so that a layer's experts are known one
layer ahead. tiny_dense has, as released, a first layer without experts, whose states the router of
the second reads, and groups of three. The published model has 31 layers, and 64 experts in each of
ten groups; there is no preset of its size.

Measured after 300 steps: 2.052 (tiny) and 2.019 (tiny_dense) nats per byte of the bundled
validation text.
Checked against: authors' code, 2 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "tiny_dense")


def get_config(preset: str) -> ConfigDict:
    config = base.get_config("tiny", num_steps=300)
    experts = dict(num_experts=12, top_k=3, expert_dim=48, shared_dim=48)
    scores = dict(score="sigmoid", is_renormalised=True)
    config.model.block.feedforward = dict(kind="lagged_moe", **experts, **scores)
    config.model.varies = (("experts", "block/2"),)
    if preset == "tiny_dense":
        config.model.update(num_layers=7, prelude=1, varies=(("experts", "block/3"),))
        config.model.end_feedforward = dict(kind="swiglu", mlp_dim=192)
    return config.lock()
