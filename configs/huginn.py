r"""Recurrent depth (Huginn): a core recurs a random number of times between prelude and coda.

  recursia train --config=huginn:tiny --workdir=runs/huginn_tiny          # a minute on 2 cores
  recursia train --config=huginn:study --workdir=runs/huginn_study --config.data.path=DIR
  recursia train --config=huginn:3.5b --workdir=runs/huginn --config.data.path=DIR

Geiping et al. 2025, arXiv 2502.05171: adapter A [s; e], initial states of noise, and 1 + Poisson
recursions of log-normal rate, with a gradient through the last 8. 3.5b is the released model, with
3,564,976,800 parameters and effective depth 132, trained on 4096 GPUs. study has the blocks (1, 4,
1) and the width 1024 of the paper's small models; heads and MLP width are our choice. Meant for
v5p:8x8x8 (3.5b) and v5e:16x16 (study).

Measured with tiny (a mean of 4, a gradient through 2), seed 0: bits per byte of the bundled
validation text 2.810 at depth 1, 2.776 at 2, and 2.774 at 4, 8 and 16.
Checked against: authors' code, 2 files.
"""

import math

from ml_collections import ConfigDict

from recursia.configs import base, blocks

# Blocks of prelude, core and coda; widths; mean recursions, and how many of them have a gradient.
SHAPES = {
    "tiny": dict(blocks=(1, 2, 1), embed_dim=64, num_heads=4, mlp_dim=192, mean=4, trained=2),
    "study": dict(blocks=(1, 4, 1), embed_dim=1024, num_heads=8, mlp_dim=3520, mean=32, trained=8),
    "3.5b": dict(blocks=(2, 4, 2), embed_dim=5280, num_heads=55, mlp_dim=17920, mean=32, trained=8),
}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    shape = dict(SHAPES[preset])
    prelude, core, coda = shape.pop("blocks")
    mean, trained = shape.pop("mean"), shape.pop("trained")
    std = math.sqrt(2 / (5 * shape["embed_dim"]))
    topologies = {"tiny": "v5e:1x1", "study": "v5e:16x16", "3.5b": "v5p:8x8x8"}
    config = ConfigDict(dict(topology=topologies[preset]))
    config.model = dict(
        num_layers=prelude + mean * core + coda,
        block=blocks.huginn(head_dim=shape["embed_dim"] // shape["num_heads"], **shape),
        depth=dict(kind="recurrent", num_recursions=mean, backprop_depth=trained),
        sharing="cycle",
        prelude=prelude,
        coda=coda,
        inject=dict(input="adapter", init_std=std),
        loop_norm="last",
        kv=dict(kv_sharing="own"),
        embed=dict(init_std=std, scale=math.sqrt(shape["embed_dim"])),
    )
    base.tiny(config, 0) if preset == "tiny" else published(config)
    if preset != "tiny":
        config.train.num_microbatches = {"study": 2, "3.5b": 4}[preset]
    if preset == "3.5b":  # 512 chips do not divide its width
        config.mesh = dict(data=-1, fsdp=32)
    return config.lock()


def published(config: ConfigDict) -> None:
    """Sets the recipe and vocabulary of the released run, also for the study models.

    Global batch of 4096 x 4096 tokens, 800 B in all, decoupled weight decay of 4e-5 per step, and a
    constant learning rate after warm-up.
    """
    config.model.update(vocab_size=65536, dtype="bfloat16")
    config.data = dict(path=("data/fineweb-edu",))
    config.train = dict(num_steps=47684, batch_size=4096, seq_len=4096)
    config.optimizer = dict(learning_rate=4e-5, weight_decay=1.0, b1=0.9, b2=0.95, clip_norm=1.0)
    config.schedule = dict(kind="constant", warmup_steps=4096)
    config.checkpoint = dict(every_steps=500, keep=3)
    config.eval = dict(every_steps=500, num_batches=16)
    config.mesh = dict(data=1, fsdp=-1)
