"""Shapes, data and training recipes by size, shared by the shipped configurations."""

from ml_collections import ConfigDict

from recursia.configs import blocks

# SmolLM's public shapes for 135m, 360m and 1.7b; 730m from the sizes that Mixture-of-Recursions
# (Bae et al. 2025, arXiv 2507.10524) reports. `num_layers` is the effective depth.
SHAPES = {
    "demo": dict(num_layers=8, embed_dim=128, num_heads=4, num_kv_heads=2, mlp_dim=384),
    "tiny": dict(num_layers=8, embed_dim=64, num_heads=4, num_kv_heads=2, mlp_dim=192),
    "135m": dict(num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, mlp_dim=1536),
    "360m": dict(num_layers=32, embed_dim=960, num_heads=15, num_kv_heads=5, mlp_dim=2560),
    "730m": dict(num_layers=26, embed_dim=1536, num_heads=24, num_kv_heads=8, mlp_dim=4096),
    "1.7b": dict(num_layers=24, embed_dim=2048, num_heads=32, num_kv_heads=32, mlp_dim=8192),
}
# TinyLlama, of which studies of shared keys train variants.
TINYLLAMA = dict(num_layers=22, embed_dim=2048, num_heads=32, num_kv_heads=4, mlp_dim=5632)
# The topology that each preset is meant for; it runs on others too.
TOPOLOGIES = {
    "demo": "v5e:1x1",
    "tiny": "v5e:1x1",
    "135m": "v5e:4x4",
    "360m": "v5e:8x8",
    "730m": "v5e:16x16",
    "1.1b": "v5e:16x16",
    "1.7b": "v5e:16x16",
}
# Depths whose layers, without an unshared first and last, are divisible by three recursions. The
# authors' code drops layers beyond these, and they give the unique parameters of the paper.
MIDDLE_THREE = {"135m": 29, "1.7b": 23}
PRESETS = tuple(SHAPES)


def get_config(preset: str, num_steps: int) -> ConfigDict:
    """Returns a vanilla Llama of one size with its training recipe.

    Args:
      preset: a key of SHAPES, or "1.1b" for TinyLlama.
      num_steps: training steps of the published run; "demo" and "tiny" have their own.
    """
    shape = dict({**SHAPES, "1.1b": TINYLLAMA}[preset])
    config = ConfigDict(dict(topology=TOPOLOGIES[preset]))
    config.model = dict(
        num_layers=shape.pop("num_layers"),
        block=blocks.llama(head_dim=shape["embed_dim"] // shape["num_heads"], **shape),
        depth=dict(kind="fixed", num_recursions=1),
        sharing="none",
        kv=dict(kv_sharing="own"),
    )
    small = {"demo": demo, "tiny": tiny}
    (small[preset] if preset in small else published)(config, num_steps)
    if preset == "135m":  # 64 sequences a chip, 32 at a time
        config.train.num_microbatches = 2
    return config


def published(config: ConfigDict, num_steps: int) -> None:
    """Sets the recipe of the released 360m runs, which the other sizes use too.

    Global batch of 1024 x 2048 tokens, AdamW, warm-up of 0.6 %, linear decay over the last 20 %.
    """
    config.model.update(vocab_size=49152, dtype="bfloat16")
    config.data = dict(path=("data/fineweb-edu",))
    config.train = dict(num_steps=num_steps, batch_size=1024, seq_len=2048, remat="block")
    config.optimizer = dict(learning_rate=3e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0)
    config.schedule = dict(kind="wsd", warmup_steps=round(0.006 * num_steps), decay_fraction=0.2)
    config.checkpoint = dict(every_steps=500, keep=3)
    config.eval = dict(every_steps=500, num_batches=16)
    config.mesh = dict(data=1, fsdp=-1)


def tiny(config: ConfigDict, num_steps: int) -> None:
    """Sets a run of about a minute on two cores, on the bytes of the bundled text."""
    _bundled(config, "byte")
    config.train = dict(num_steps=300, batch_size=8, seq_len=128)
    config.optimizer = dict(learning_rate=3e-3)
    config.schedule = dict(kind="wsd", warmup_steps=20)
    config.checkpoint = dict(every_steps=100)
    config.eval = dict(every_steps=100, num_batches=8, prompts=("The ",), sample_tokens=48)
    config.log = dict(every_steps=10)


def demo(config: ConfigDict, num_steps: int) -> None:
    """Sets a run of about four minutes on two cores, on the bytes of the bundled text."""
    _bundled(config, "byte")
    config.train = dict(num_steps=500, batch_size=8, seq_len=192, loss_chunk=192)
    config.optimizer = dict(learning_rate=5e-3)
    config.schedule = dict(kind="wsd", warmup_steps=30, decay_fraction=0.4)
    config.checkpoint = dict(every_steps=100)
    prompts = ("It was a ", "My dear ", "She looked at ")
    config.eval = dict(every_steps=100, num_batches=8, prompts=prompts, sample_tokens=128)
    config.log = dict(every_steps=5)


def _bundled(config: ConfigDict, tokenizer: str) -> None:
    config.data = dict(
        text=("bundled:train",), validation_text=("bundled:validation",), tokenizer=tokenizer
    )
