"""Points on the axes, small: each kind of block, mixer, feed-forward, depth policy and the rest."""

import contextlib
import dataclasses
import inspect
import itertools
import typing

import numpy as np

from recursia import injection, kinds
from recursia.architecture import Model
from recursia.layers import embedding
from tests.helpers.blocks import PUBLISHED, published
from tests.helpers.tiny import VOCAB, keys_plan

RECURSIONS, BLOCKS_OF_CORE = 3, 2
PATTERNS = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
SIZES = {  # of the fields that blocks, their layers and weight kinds have
    "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24,
    "num_experts": 4, "top_k": 2, "expert_dim": 6, "rank": 2, "num_atoms": 2, "num_shared": 1,
    "budget": 0.5, "ratio": 0.5, "shared_dim": 4, "router_dim": 4,
    "num_attention_experts": 3, "attention_top_k": 2, "base_width": 8, "base_layers": 1,
    "num_keys": 4, "key_dim": 4, "value_dim": 6, "retrieval_heads": 2,
}  # fmt: skip
EXPERTS = ("num_experts", "top_k", "expert_dim")
ROUTED = (*EXPERTS, "num_attention_experts", "attention_top_k")
TAKES = {"moeut": ROUTED, "sut": ROUTED, "widenet": EXPERTS}  # what a preset passes on by name

AXES = ("block", "mixer", "feedforward", "depth", "weights", "parameterisation")
BLOCKS, MIXERS, FEEDFORWARDS, DEPTHS, WEIGHTS, PARAMETERISATIONS = map(kinds.names, AXES)
INJECTS = {
    "nothing": injection.Injection(),
    "input added": injection.Injection(input="add"),
    "input by adapter": injection.Injection(input="adapter"),
    "coordinates": injection.Injection(position="halves", step="interleaved"),
    "learned steps": injection.Injection(step="learned"),
}
NEEDS = {"recurrent": "input by adapter"}
PLANS = ("own", "first_recursion", "groups/2", "groups/3", "spread/3", "upper_half")
PLANS += ("last_recursion", "middle/1")  # in these, steps read keys of later ones
PLANS += ("groups/2 replayed", "first_recursion replayed")  # queries and keys, not keys and values
# Thresholds at which tokens of random models stop at different recursions; a number not drawn.
STOPS = {
    "exit_gate": {"exit_threshold": 0.6},
    "stick_breaking": {"threshold": 0.75},
    "recurrent": {"sampler": "fixed", "exit_threshold": 0.4},
}


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


def small(axis, kind):
    """Returns a small mixer, feed-forward or weight kind; an inner feed-forward is SwiGLU."""
    config = kinds.config_class(axis, kind)
    fields = {f.name for f in dataclasses.fields(config)}
    inner = {"feedforward": small("feedforward", "swiglu")} if "feedforward" in fields else {}
    return config(**inner, **{name: size for name, size in SIZES.items() if name in fields})


def block(name, mixer="grouped_query", feedforward="swiglu"):
    """Returns a small block: a published one, or an arrangement of a mixer and a feed-forward."""
    if name in PUBLISHED:
        heads = ("embed_dim", "num_heads", "head_dim")
        takes = TAKES.get(name, ("num_kv_heads", "mlp_dim"))
        named = inspect.signature(PUBLISHED[name]).parameters
        has_rest = any(p.kind is p.VAR_KEYWORD for p in named.values())
        fields = [f for f in (*heads, *takes) if has_rest or f in named]
        return published(name, **{field: SIZES[field] for field in fields})
    layers = small("mixer", mixer), small("feedforward", feedforward)
    return kinds.config_class("block", name)(SIZES["embed_dim"], *layers)


def policy(name, recursions=RECURSIONS):
    """Returns a depth policy under which tokens differ; nested cycles take an even number."""
    recursions += recursions % 2 if name == "nested" else 0
    return kinds.config_class("depth", name)(num_recursions=recursions, **STOPS.get(name, {}))


def weight_kind(name, made):
    """Returns a weight kind for a block: adapters of those of its slots that the block has."""
    kind = small("weights", name)
    slots = getattr(kind, "slots", ())
    has = tuple(slot for slot in slots if slot in made.slots)
    return dataclasses.replace(kind, slots=has) if slots else kind


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
    parameterisation="standard",
    **options,
):
    """Returns the model at a point.

    Nothing is injected unless said, or the input for a policy that needs it.

    Raises:
      ValueError: if its kinds cannot be combined.
    """
    made = block(block_, mixer, feedforward)
    inject_ = inject_ or NEEDS.get(depth_, "nothing")
    ends = 2 if sharing.startswith("middle_") else 0
    depth = policy(depth_, recursions)
    return Model(
        depth.num_recursions * num_blocks + ends,
        made,
        depth,
        sharing=sharing,
        inject=INJECTS[inject_],
        weights=weight_kind(weights, made),
        kv=keys_plan(kv_sharing),
        parameterisation=small("parameterisation", parameterisation),
        vocab_size=VOCAB,
        **{"embed": embedding.Embedding(), **options},
    )


def alternatives(config):
    """Yields (name, config) for each value of each field that chooses among a few."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        kind = types[field.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        for value in (False, True) if kind is bool else choices:
            if value != getattr(config, field.name):
                yield f"{field.name} {value}", dataclasses.replace(config, **{field.name: value})


def covering(axes):
    """Returns the arguments of few points among which is every pair of values that is legal.

    Args:
      axes: argument of `point` to its values.
    """

    def is_legal(chosen):
        with contextlib.suppress(ValueError):
            point(**{"block_": "pre_norm", **chosen})
            return True
        return False

    pairs_of = lambda chosen: set(itertools.combinations(sorted(chosen.items()), 2))
    both = itertools.combinations(sorted(axes), 2)
    every = [((a, x), (b, y)) for a, b in both for x in axes[a] for y in axes[b]]
    left, found = dict.fromkeys(pair for pair in every if is_legal(dict(pair))), []
    while left:
        chosen = dict(next(iter(left)))
        for axis in sorted(axes.keys() - chosen):
            new = lambda value: len(pairs_of({**chosen, axis: value}) & left.keys())  # noqa: B023
            for value in sorted(axes[axis], key=new, reverse=True):
                if is_legal({**chosen, axis: value}):
                    chosen[axis] = value
                    break
        for pair in pairs_of(chosen):
            left.pop(pair, None)
        found.append(chosen)
    return found


def few(chosen, coupled):
    """Returns few of some points with every combination of values along coupled axes.

    Args:
      chosen: arguments of `point`; those of models with caches are taken first.
      coupled: tuples of arguments' names.
    """
    of = lambda each: {tuple((a, each.get(a)) for a in axes) for axes in coupled}
    sets, decodes = [*map(of, chosen)], [point(**each).is_incremental for each in chosen]
    left, found = set().union(*sets), []
    while left:
        new = [len(left & each) for each in sets]
        best = max(range(len(new)), key=lambda i: (new[i] * decodes[i], new[i]))
        left -= sets[best]
        found.append(chosen[best])
    return found


def every():
    """Returns a point by name for every kind on every axis, one away from a plain model."""
    found = {name: point(name) for name in (*BLOCKS, *PUBLISHED)}
    found |= {name: point("pre_norm", mixer=name) for name in MIXERS}
    found |= {name: point("pre_norm", feedforward=name) for name in FEEDFORWARDS}
    found |= {name: point(depth_=name) for name in DEPTHS}
    found |= {name: point(weights=name) for name in WEIGHTS}
    found |= {f"keys of {plan}": point(kv_sharing=plan) for plan in PLANS}
    found |= {name: point(inject_=name) for name in INJECTS}
    found |= {f"sharing {name}": point(sharing=name) for name in PATTERNS}
    found |= {f"loop norm {name}": point(loop_norm=name) for name in ("each", "last")}
    for name in DEPTHS:
        plain = found[name]
        for choice, depth in alternatives(plain.depth):
            found[f"{name}, {choice}"] = dataclasses.replace(plain, depth=depth)
        with contextlib.suppress(ValueError):  # of a policy whose recursions make keys of their own
            found[f"{name}, first keys"] = point(depth_=name, kv_sharing="first_recursion")
    for name in MIXERS:
        plain = found[name]
        for choice, mixer in alternatives(plain.block.mixer):
            made = dataclasses.replace(plain.block, mixer=mixer)
            found[f"{name}, {choice}"] = dataclasses.replace(plain, block=made)
    names = {config: name for name, config in reversed(found.items())}
    return {name: config for name, config in found.items() if names[config] == name}
