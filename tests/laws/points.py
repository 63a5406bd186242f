"""Points on the axes: every block, depth policy, pattern, source of keys and weight kind, small."""

import dataclasses

import numpy as np

from recursia import inject, kv, model
from recursia.layers import embedding
from recursia.settings import kind_config, kinds
from recursia.sharing import lora, tied
from tests.laws.tiny import VOCAB

RECURSIONS, BLOCKS_OF_CORE = 3, 2
PATTERNS = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
SIZES = {  # of the fields that a block's Config has
    "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24,
    "num_experts": 4, "top_k": 2, "expert_dim": 6,
    "num_attention_experts": 3, "attention_top_k": 2,
}  # fmt: skip


BLOCKS, DEPTHS = kinds("block"), kinds("depth")
INJECTS = {
    "nothing": inject.Config(),
    "input added": inject.Config(input="add"),
    "input by adapter": inject.Config(input="adapter"),
    "coordinates": inject.Config(position="halves", step="interleaved"),
    "learned steps": inject.Config(step="learned"),
}
NEEDS = {"recurrent": "input by adapter"}
WEIGHTS = ("tied", "lora")
PLANS = ("own", "first_recursion", "groups/2", "groups/3", "spread/3", "upper_half")


def keys(rng, recursions, blocks, order="cycle"):
    """Returns a random table of the steps whose keys each step reads, all of them legal."""
    grid = np.arange(recursions * blocks).reshape(recursions, blocks)
    table, owners = np.zeros_like(grid), []
    for step in (grid if order == "cycle" else grid.T).reshape(-1):
        if not owners or rng.random() < 0.4:
            owners.append(step)
            table.flat[step] = step
        else:
            table.flat[step] = rng.choice(owners)
    return tuple(map(tuple, table.tolist()))


def block(name):
    """Returns a small config of a block."""
    config = kind_config("block", name)
    fields = {field.name for field in dataclasses.fields(config)}
    return config(**{name: size for name, size in SIZES.items() if name in fields})


def policy(name, recursions=RECURSIONS):
    """Returns a depth policy with its defaults."""
    return kind_config("depth", name)(recursions)


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
    slots = block(block_).slots
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
    )
