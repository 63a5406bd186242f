r"""Sparse Universal Transformer: one block with experts for all recursions, and tokens that halt.

  recursia train --config=sut:tiny --workdir=runs/sut_tiny                # minutes on 2 cores
  recursia train --config=sut:44m --workdir=runs/sut_44m --config.data.path=DIR
  recursia train --config=sut:tiny ... --config.model.depth.act_loss_weight=1

Tan et al. 2023, arXiv 2310.07096, as a causal language model.

  tiny       2.44 nats per byte on the validation text after its 300 steps, at a mean depth of 1.75
             of 6; vanilla:tiny has 2.04. Experts have the published initial scale, which is small.
  44m, 244m  the baselines of MoEUT (Csordás et al. 2024, arXiv 2405.16039), from its released
             sweeps: 100,000 steps of 64 x 1024 tokens, a vocabulary of 8,000. The sweeps also
             normalise the embedding, and the larger one draws an expert at random; these do not.
  wmt        the shape of one stack of the paper's base model for translation, with the recipe of
             `base.published`.
  logic      the shape for the paper's logical inference, on the bundled text. The paper's width is
             not known: 256 is our choice, as are two heads of 16 in its experts of 32.

Meant for v5e:4x4 (44m, 244m) and v5e:16x16 (wmt).
Checked against: equations in NumPy.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

# Recursions; then of the block: width, key heads, head width, attention experts and their top-k,
# experts and their top-k, expert width.
SHAPES = {
    "tiny": (6, 64, 2, 16, 4, 2, 8, 2, 64),
    "logic": (12, 256, 2, 16, 12, 4, 12, 4, 128),
    "wmt": (6, 512, 4, 64, 24, 4, 24, 4, 512),
    "44m": (16, 412, 4, 64, 24, 2, 152, 2, 256),
    "244m": (18, 1024, 4, 128, 21, 2, 192, 4, 512),
}
NAMES = ("embed_dim", "num_heads", "head_dim", "num_attention_experts", "attention_top_k")
NAMES += ("num_experts", "top_k", "expert_dim")
MIM = {"tiny": 0.01, "logic": 0.01, "wmt": 0.1, "44m": 0.001, "244m": 0.01}
CLIP_WARMUP = {"44m": (0.1, 0), "244m": (0.25, 4000)}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    config = base.get_config("tiny" if preset in ("tiny", "logic") else "360m", num_steps=100_000)
    config.topology = "v5e:1x1" if preset in ("tiny", "logic") else "v5e:4x4"
    recursions, *shape = SHAPES[preset]
    config.model.update(num_layers=recursions, sharing="cycle")
    sizes = dict(zip(NAMES, shape, strict=True))
    config.model.block = blocks.sut(mim_weight=MIM[preset], **sizes)
    config.model.depth = dict(kind="stick_breaking", num_recursions=recursions)
    if preset == "44m":  # 16 chips do not divide its width
        config.mesh = dict(data=-1, fsdp=1)
    if preset in CLIP_WARMUP:
        baseline(config, *CLIP_WARMUP[preset])
    if preset == "wmt":
        config.model.depth.act_loss_weight = 0.0
        config.topology = "v5e:16x16"  # relative scores of all pairs of tokens are in memory
        config.train.num_microbatches = 4
    return config.lock()


def baseline(config: ConfigDict, clip_norm: float, warmup_steps: int) -> None:
    """Sets the recipe of MoEUT's baselines."""
    width = config.model.block.embed_dim
    config.model.vocab_size = 8000
    config.model.embed = dict(
        is_tied=False, has_head_bias=True, init_std=width**-0.5, head_init_std=(3 * width) ** -0.5
    )
    config.train = dict(num_steps=100_000, batch_size=64, seq_len=1024, remat="block")
    config.optimizer = dict(learning_rate=2.5e-4, weight_decay=0.01, b2=0.999, clip_norm=clip_norm)
    config.schedule = dict(kind="cosine", warmup_steps=warmup_steps, final_fraction=0.1)
