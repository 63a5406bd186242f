r"""MoEUT: a repeated group of layers with experts in the feed-forward and in attention.

  recursia train --config=moeut:tiny --workdir=runs/moeut_tiny            # minutes on 2 cores
  recursia train --config=moeut:244m --workdir=runs/moeut_244m --config.data.path=DIR

Csordás et al. 2024, arXiv 2405.16039: sizes and recipe of the released sweeps, 100,000 steps of
65,536 tokens of C4 with a vocabulary of 8,000 and a cosine decay to a tenth. The paper trained 244m
on eight V100s. For 727m the released profile has width 1024, but the trained sweep has 1280. Meant
for v6e:2x2, v6e:4x4 (727m) and v6e:16x16 (1b).

`tiny` after 300 steps: 1.92 nats (2.77 bits) per byte of the bundled validation text.
Checked against: authors' code, 2 files.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

# Steps, stored layers, width, heads, width of a head, experts, chosen, attention experts.
SHAPES = {
    "44m": (16, 2, 412, 4, 82, 155, 12, 8),
    "126m": (18, 2, 768, 4, 96, 254, 12, 10),
    "244m": (18, 2, 1024, 4, 128, 387, 16, 10),
    "318m": (24, 3, 1024, 4, 128, 338, 16, 10),
    "727m": (36, 4, 1280, 5, 128, 467, 20, 13),
    "1b": (36, 4, 1536, 6, 128, 565, 24, 12),
    "tiny": (8, 2, 64, 2, 32, 32, 4, 4),
}
PRESETS = tuple(SHAPES)


def get_config(preset: str) -> ConfigDict:
    steps, group, width, heads, head_dim, experts, chosen, attention_experts = SHAPES[preset]
    topologies = {"tiny": "v5e:1x1", "727m": "v6e:4x4", "1b": "v6e:16x16"}
    config = ConfigDict(dict(topology=topologies.get(preset, "v6e:2x2")))
    config.model = dict(
        num_layers=steps,
        block=blocks.moeut(
            embed_dim=width,
            num_heads=heads,
            head_dim=head_dim,
            num_experts=experts,
            top_k=chosen,
            expert_dim=32 if preset == "tiny" else 128,
            num_attention_experts=attention_experts,
        ),
        depth=dict(kind="fixed", num_recursions=steps // group),
        sharing="cycle",
        # head_init_std is that of PyTorch's uniform default.
        embed=dict(
            is_tied=False,
            has_head_bias=True,
            init_std=width**-0.5,
            head_init_std=(3 * width) ** -0.5,
        ),
    )
    if preset == "tiny":
        base.tiny(config, num_steps=300)
    else:
        _published(config, warmup_steps=0 if preset == "44m" else 4000)
    if preset == "1b":  # 64 sequences for 256 chips: each is split over four
        config.mesh = dict(data=1, fsdp=-1, context=4)
    return config.lock()


def _published(config: ConfigDict, warmup_steps: int) -> None:
    config.model.update(vocab_size=8000, dtype="bfloat16")
    config.data = dict(path=("data/c4",))
    config.train = dict(num_steps=100_000, batch_size=64, seq_len=1024, remat="block")
    clip = 0.25 if warmup_steps else 0.1
    config.optimizer = dict(learning_rate=2.5e-4, weight_decay=0.01, b2=0.999, clip_norm=clip)
    config.schedule = dict(kind="cosine", warmup_steps=warmup_steps, final_fraction=0.1)
    config.checkpoint = dict(every_steps=1000, keep=3)
    config.eval = dict(every_steps=1000, num_batches=16)
