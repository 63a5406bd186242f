r"""OpenELM: deeper layers have more heads and more hidden units; nested slices where layers share.

  recursia train --config=openelm:tiny --workdir=runs/openelm_tiny        # a minute on 2 cores
  recursia train --config=openelm:270m --workdir=runs/openelm --config.data.path=DIR
  recursia train --config=openelm:tiny_shared --workdir=runs/openelm_shared

Mehta et al. 2024, arXiv 2404.14619: from the first layer to the last, the width of queries grows
from half of the model's to all of it, and the hidden width from half to four times the model's, in
even steps that are rounded to whole groups of four heads and to multiples of 256. Parameters of the
published sizes are the published ones, 271,527,168 to 3,036,647,424. Their recipe is the paper's,
without its auxiliary loss of the logits' size; they are meant for v5e:16x16. In tiny_shared one
block is applied eight times, and a step has its first heads and hidden units; this is not in the
paper.

Measured, tiny on 2 cores in float32: validation loss 2.17 nats per token after 300 steps.
Checked against: vanilla and tied models.
"""

from ml_collections import ConfigDict

from recursia.configs import base, blocks

# Layers, width, width of a head, peak learning rate.
SHAPES = {
    "270m": (16, 1280, 64, 5.3e-3),
    "450m": (20, 1536, 64, 3.9e-3),
    "1.1b": (28, 2048, 64, 2.4e-3),
    "3b": (36, 3072, 128, 1.2e-3),
}
PRESETS = ("tiny", "tiny_shared", *SHAPES)
GROUP, MULTIPLE = 4, 256  # query heads of each key head; hidden units are a multiple
STEPS = 350_000


def rounded(width: float, unit: int) -> int:
    """Returns the nearest multiple of a unit, or the next where that is below nine tenths."""
    near = max(unit, int(width + unit / 2) // unit * unit)
    return near + unit if near < 0.9 * width else near


def along(first: float, last: float, count: int) -> list[float]:
    """Returns the multipliers of the width by layer, to two decimals."""
    return [round(first + (last - first) * layer / (count - 1), 2) for layer in range(count)]


def get_config(preset: str) -> ConfigDict:
    if preset in SHAPES:
        return published(*SHAPES[preset]).lock()
    config = base.get_config("tiny", num_steps=300)
    config.model.block.mixer.head_norm_eps = 1e-6
    config.model.weights = dict(kind="slices", heads=(0.5, 1.0), hidden=(0.125, 1.0), multiple=8)
    config.model.block.feedforward.mlp_dim = 4 * config.model.block.embed_dim
    if preset == "tiny_shared":
        config.model.sharing = "cycle"
        config.model.depth.num_recursions = config.model.num_layers
    return config.lock()


def published(layers: int, width: int, head_dim: int, rate: float) -> ConfigDict:
    """Returns one of the published models, with its recipe of 4 Mi tokens a step."""
    wide = [rounded(m * width, GROUP * head_dim) for m in along(0.5, 1.0, layers)]
    hidden = [rounded(m * width, MULTIPLE) for m in along(0.5, 4.0, layers)]
    config = ConfigDict(dict(topology="v5e:16x16"))
    config.model = dict(
        num_layers=layers,
        block=blocks.llama(
            embed_dim=width,
            mlp_dim=max(hidden),
            norm_eps=1e-6,
            num_heads=max(wide) // head_dim,
            num_kv_heads=max(wide) // head_dim // GROUP,
            head_dim=head_dim,
            head_norm_eps=1e-6,
        ),
        depth=dict(kind="fixed", num_recursions=1),
        sharing="none",
        weights=dict(
            kind="slices",
            heads=tuple(w / max(wide) for w in wide),
            hidden=tuple(w / max(hidden) for w in hidden),
            multiple=MULTIPLE,
        ),
    )
    base.published(config, STEPS)
    config.model.vocab_size = 32_000
    config.train.update(batch_size=2048, num_microbatches=4)
    config.optimizer.learning_rate = rate
    config.schedule = dict(kind="cosine", warmup_steps=5000, final_fraction=0.1)
    return config
