r"""Memory layers: feed-forwards that read one table of values for all steps, by product keys.

  recursia train --config=memory:tiny --workdir=runs/memory_tiny          # minutes on 2 cores
  recursia train --config=memory:tiny ... --config.block.num_keys=64
  recursia train --config=memory:135m --workdir=gs://...                  # v5e:4x4

Memory Layers at Scale (Berges et al. 2024, arXiv 2412.09764), on a recursive Llama: four blocks
applied twice, each with a memory layer in the place of its feed-forward. The paper has them in
three layers of a model that shares nothing else. 135m has the smallest of their tables, a million
values, and tiny has 1,024.

Measured, tiny on 2 cores in float32: validation loss 2.52 nats per token after 300 steps.
Checked against: authors' code, 2 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base

PRESETS = ("tiny", "135m")
TABLES = {
    "tiny": dict(num_keys=32, key_dim=32, retrieval_heads=2, top_k=8),
    "135m": dict(num_keys=1024, key_dim=512, retrieval_heads=4, top_k=32),
}


def get_config(preset: str) -> ConfigDict:
    config = base.get_config(preset, num_steps=9438)
    config.model.sharing = "cycle"
    config.model.depth.num_recursions = 2
    config.model.block.feedforward = dict(
        kind="product_keys",
        **TABLES[preset],
        value_dim=config.model.block.embed_dim,
        values_rate=1e-3 / config.optimizer.learning_rate,  # published: 1e-3, whatever the rest has
        init=dict(rule="fan_in", std=1.0),  # few values of many: with 0.02 a layer adds nothing
    )
    if preset == "135m":  # two sequences a chip at a time, whose values are gathered at once
        config.train.num_microbatches = 32
    return config.lock()
