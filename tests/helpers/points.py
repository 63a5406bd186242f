"""Points on the axes, small: arrangements, mixers, feed-forwards, depth policies and the rest."""

import dataclasses

import numpy as np

from recursia import injection, kinds, kv
from recursia.architecture import Model
from recursia.layers import embedding
from recursia.sharing import atoms, lora, tied
from tests.helpers.blocks import PUBLISHED, published
from tests.helpers.tiny import VOCAB

RECURSIONS, BLOCKS_OF_CORE = 3, 2
PATTERNS = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
SIZES = {  # of the fields that blocks and their parts have
    "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24,
    "num_experts": 4, "top_k": 2, "expert_dim": 6, "rank": 3,
    "num_attention_experts": 3, "attention_top_k": 2,
}  # fmt: skip


BLOCKS, MIXERS, FEEDFORWARDS, DEPTHS = map(kinds.names, ("block", "mixer", "feedforward", "depth"))
HEADS = ("embed_dim", "num_heads", "head_dim")
EXPERTS = (*HEADS, "num_experts", "top_k", "expert_dim")
ROUTED = (*EXPERTS, "num_attention_experts", "attention_top_k")
TAKES = {  # widths of a published block
    "llama": (*HEADS, "num_kv_heads", "mlp_dim"), "ouro": (*HEADS, "num_kv_heads", "mlp_dim"),
    "universal": (*HEADS, "num_kv_heads", "mlp_dim"), "huginn": (*HEADS, "mlp_dim"),
    "moeut": ROUTED, "sut": ROUTED, "widenet": EXPERTS,
}  # fmt: skip
INJECTS = {
    "nothing": injection.Injection(),
    "input added": injection.Injection(input="add"),
    "input by adapter": injection.Injection(input="adapter"),
    "coordinates": injection.Injection(position="halves", step="interleaved"),
    "learned steps": injection.Injection(step="learned"),
}
NEEDS = {"recurrent": "input by adapter"}
WEIGHTS = ("tied", "lora", "atoms")
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


def part(field, kind):
    """Returns a small part of a block; of a feed-forward around another, that is SwiGLU."""
    config = kinds.config_class(field, kind)
    fields = {f.name for f in dataclasses.fields(config)}
    inner = {"feedforward": part("feedforward", "swiglu")} if "feedforward" in fields else {}
    return config(**inner, **{name: size for name, size in SIZES.items() if name in fields})


def block(name, mixer="grouped_query", feedforward="swiglu"):
    """Returns a small block: a published one, or an arrangement of two parts."""
    if name in PUBLISHED:
        return published(name, **{field: SIZES[field] for field in TAKES[name]})
    parts = part("mixer", mixer), part("feedforward", feedforward)
    return kinds.config_class("block", name)(SIZES["embed_dim"], *parts)


def policy(name, recursions=RECURSIONS):
    """Returns a depth policy with its defaults; nested cycles take an even number."""
    recursions += recursions % 2 if name == "nested" else 0
    return kinds.config_class("depth", name)(num_recursions=recursions)


def point(
    block_="llama",
    depth_="fixed",
    mixer="grouped_query",
    feedforward="swiglu",
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
    made = block(block_, mixer, feedforward)
    weights_kinds = {
        "tied": tied.Tied(),
        "lora": lora.Lora(2, tuple(slot for slot in ("attention", "mlp") if slot in made.slots)),
        "atoms": atoms.Atoms(2),
    }
    inject_ = inject_ or NEEDS.get(depth_, "nothing")
    ends = 2 if sharing.startswith("middle_") else 0
    depth = policy(depth_, recursions)
    return Model(
        depth.num_recursions * num_blocks + ends,
        made,
        depth,
        sharing=sharing,
        inject=INJECTS[inject_],
        weights=weights_kinds[weights],
        kv=kv.Plan(kv_sharing),
        vocab_size=VOCAB,
        **{"embed": embedding.Embedding(), **options},
    )
