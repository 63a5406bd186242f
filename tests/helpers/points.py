"""Points on the axes: every block, depth policy, pattern, source of keys and weight kind, small."""

import dataclasses
import importlib
import pkgutil

from recursia import blocks, depth, inject, kv
from recursia.layers import embedding
from recursia.settings import kind_config
from recursia.sharing import lora, tied
from tests.helpers.tiny import VOCAB

RECURSIONS, BLOCKS_OF_CORE = 3, 2
PATTERNS = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
SIZES = {  # of the fields that a block's Config has
    "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24,
    "num_experts": 4, "top_k": 2, "expert_dim": 6,
    "num_attention_experts": 3, "attention_top_k": 2,
}  # fmt: skip


def names(package):
    """Returns the names of a package's modules that have a Config."""
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return tuple(n for n in found if kind_config(package.__name__, n))


BLOCKS, DEPTHS = names(blocks), names(depth)
INJECTS = {
    "nothing": inject.Config(),
    "input added": inject.Config(input="add"),
    "input by adapter": inject.Config(input="adapter"),
    "coordinates": inject.Config(position="halves", step="interleaved"),
    "learned steps": inject.Config(step="learned"),
}
NEEDS = {"recurrent": "input by adapter"}
WEIGHTS = ("tied", "lora")


def block(name):
    """Returns a small config of a block."""
    config = importlib.import_module(f"recursia.blocks.{name}").Config
    fields = {field.name for field in dataclasses.fields(config)}
    return config(**{name: size for name, size in SIZES.items() if name in fields})


def policy(name, recursions=RECURSIONS):
    """Returns a depth policy with its defaults."""
    return importlib.import_module(f"recursia.depth.{name}").Config(num_recursions=recursions)


def point(
    block_="llama",
    depth_="fixed",
    sharing="cycle",
    recursions=RECURSIONS,
    num_blocks=BLOCKS_OF_CORE,
    inject_=None,
    weights="tied",
    kv_sharing="own",
    **options,
):
    """Returns the model at a point.

    What recursions are told is nothing unless said, or the input where a policy cannot do without.

    Raises:
      ValueError: if its parts cannot be combined.
    """
    slots = importlib.import_module(f"recursia.blocks.{block_}").SLOTS
    kinds = {
        "tied": tied.Tied(),
        "lora": lora.Lora(2, tuple(slot for slot in ("attention", "mlp") if slot in slots)),
    }
    inject_ = inject_ or NEEDS.get(depth_, "nothing")
    ends = 2 if sharing.startswith("middle_") else 0
    return model.Model(
        recursions * num_blocks + ends,
        block(block_),
        policy(depth_, recursions),
        sharing=sharing,
        inject=INJECTS[inject_],
        weights=kinds[weights],
        kv=kv.Config(kv_sharing),
        vocab_size=VOCAB,
        **{"embed": embedding.Config(), **options},
    ).build(VOCAB)
