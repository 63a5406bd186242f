"""Points on the axes, small: each kind of block, mixer, feed-forward, depth policy and the rest."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import typing

import numpy as np

from recursia import injection, kinds
from recursia.architecture import Model
from recursia.parallel import Parallel
from tests.helpers.blocks import PUBLISHED, published
from tests.helpers.tiny import VOCAB, keys_plan

RECURSIONS, BLOCKS_OF_CORE = 3, 2
ENDS = {"ends of another width": (("embed_dim", 12), ("num_heads", 2))}  # of prelude and coda
PATTERNS = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
PATTERNS += tuple(f"middle_cycle, {ends}" for ends in ENDS)
UNLIKE = (("swiglu", "lagged_moe"), ("softmax_moe", "relu"))  # feed-forwards of ends and core
INSIDE = {"feedforward": "swiglu", "mixer": "grouped_query"}  # of what has one inside
SIZES = {  # of the fields that blocks, their layers and weight kinds have
    "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24,
    "num_experts": 4, "top_k": 2, "expert_dim": 6, "rank": 2, "num_atoms": 2, "num_shared": 1,
    "budget": 0.5, "ratio": 0.5, "shared_dim": 4, "router_dim": 4,
    "num_attention_experts": 3, "attention_top_k": 2, "base_width": 8, "base_layers": 1,
    "table_dim": 12, "num_keys": 4, "key_dim": 4, "value_dim": 6, "retrieval_heads": 2,
    "query_rank": 3, "attention_shared_dim": 4, "num_positions": 64,
}  # fmt: skip
EXPERTS = ("num_experts", "top_k", "expert_dim")
ROUTED = (*EXPERTS, "num_attention_experts", "attention_top_k")
TAKES = {"moeut": ROUTED, "sut": ROUTED, "widenet": EXPERTS}  # what a preset passes on by name

AXES = ("block", "mixer", "feedforward", "depth", "weights", "parameterisation", "embed")
NAMES = tuple(map(kinds.names, AXES))
BLOCKS, MIXERS, FEEDFORWARDS, DEPTHS, WEIGHTS, PARAMETERISATIONS, EMBEDS = NAMES
INJECTS = {
    "nothing": injection.Injection(),
    "input added": injection.Injection(input="add"),
    "input by adapter": injection.Injection(input="adapter"),
    "coordinates": injection.Injection(position="halves", step="interleaved"),
    "learned steps": injection.Injection(step="learned"),
}
COPIES = {"one copy": Parallel(), "two copies": Parallel(num_copies=2, prefix_tokens=3)}
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


def small(axis, name):
    """Returns a small mixer, feed-forward, weight kind or embedding, with plain parts inside."""
    kind, _, choice = name.partition(", ")
    config = kinds.config_class(axis, kind)
    fields = {f.name for f in dataclasses.fields(config)}
    inner = {part: small(part, plain) for part, plain in INSIDE.items() if part in fields}
    return chosen_of(
        config(**inner, **{size: SIZES[size] for size in SIZES if size in fields}), choice
    )


def block(name, mixer="grouped_query", feedforward=None):
    """Returns a small block: a published one, or an arrangement of a mixer and a feed-forward.

    None is the first feed-forward that goes with the mixer: a plain one, or one that hands nothing
    on if there is such.
    """
    if name in PUBLISHED:
        heads = ("embed_dim", "num_heads", "head_dim")
        takes = TAKES.get(name, ("num_kv_heads", "mlp_dim"))
        named = inspect.signature(PUBLISHED[name]).parameters
        has_rest = any(p.kind is p.VAR_KEYWORD for p in named.values())
        fields = [f for f in (*heads, *takes) if has_rest or f in named]
        return published(name, **{field: SIZES[field] for field in fields})
    made, inner = kinds.config_class("block", name), small("mixer", mixer)
    if feedforward is not None:
        return made(SIZES["embed_dim"], inner, small("feedforward", feedforward))
    for kind in plainest():
        with contextlib.suppress(ValueError):
            return made(SIZES["embed_dim"], inner, small("feedforward", kind))
    raise AssertionError(f"no feed-forward goes with {mixer}")


@functools.cache
def plainest():
    """Returns the kinds of feed-forward, a plain one first, those that hand something on last."""
    return INSIDE["feedforward"], *sorted(FEEDFORWARDS, key=lambda kind: kind not in outer())


@functools.cache
def outer():
    """Returns the kinds of feed-forward that hand nothing on: those that any ends may have."""
    return tuple(kind for kind in FEEDFORWARDS if not small("feedforward", kind).carried_dim(1))


def policy(name, recursions=RECURSIONS):
    """Returns a depth policy under which tokens differ; nested cycles take an even number."""
    kind, _, choice = name.partition(", ")
    recursions += recursions % 2 if kind == "nested" else 0
    made = kinds.config_class("depth", kind)(num_recursions=recursions, **STOPS.get(kind, {}))
    return chosen_of(made, choice)


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
    feedforward=None,
    sharing="cycle",
    recursions=RECURSIONS,
    num_blocks=BLOCKS_OF_CORE,
    inject_=None,
    weights="tied",
    kv_sharing="own",
    parameterisation="standard",
    embed_="table",
    copies="one copy",
    ends="alike",
    **options,
):
    """Returns the model at a point.

    Nothing is injected unless said, or the input for a policy that needs it. A feed-forward of the
    ends is that of a prelude, where the sharing has no ends.

    Raises:
      ValueError: if its kinds cannot be combined.
    """
    made = block(block_, mixer, feedforward)
    inject_ = inject_ or NEEDS.get(depth_.partition(", ")[0], "nothing")
    own = None if ends == "alike" else small("feedforward", ends)
    outside = 2 if sharing.startswith("middle_") else int(own is not None)
    depth = policy(depth_, recursions)
    sharing, _, sizes = sharing.partition(", ")
    return Model(
        depth.num_recursions * num_blocks + outside,
        made,
        depth,
        sharing=sharing,
        inject=INJECTS[inject_],
        weights=weight_kind(weights, made),
        kv=keys_plan(kv_sharing),
        parallel=COPIES[copies],
        parameterisation=small("parameterisation", parameterisation),
        vocab_size=VOCAB,
        **{
            "embed": small("embed", embed_),
            "end_sizes": ENDS.get(sizes, ()),
            "end_feedforward": own,
            "prelude": None if own is None else 1,
            **options,
        },
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


def chosen_of(made, choice):
    """Returns what was made with one of its `alternatives`, or as it is where none is named."""
    return dict(alternatives(made))[choice] if choice else made


def choices(axis, made):
    """Returns the names of the kinds on an axis, each also with each of its alternatives."""
    named = lambda kind: [f"{kind}, {choice}" for choice, _ in alternatives(made(kind))]
    return [name for kind in axis for name in (kind, *named(kind))]


@functools.cache
def _made(chosen):
    """Returns the point of arguments, pairs in order; None if its kinds cannot be combined."""
    with contextlib.suppress(ValueError):
        return point(**dict(chosen))


def made_of(chosen):
    """Returns the point of these arguments, made once; None if there is none."""
    return _made(tuple(sorted({"block_": "pre_norm", **chosen}.items())))


def is_legal(chosen):
    """Returns whether there is a point of these arguments."""
    return made_of(chosen) is not None


def together(axes, **rest):
    """Returns the arguments of few points of several kinds: every value of each axis is in one.

    What has been met by points with a cache, or by any where a value allows none, is left at its
    default in the points after.

    Args:
      axes: argument of `point` to its values.
      **rest: arguments of all points, but of those that allow none of them.
    """
    caches = lambda chosen: made_of(chosen).is_incremental
    left, found = {axis: list(values) for axis, values in axes.items()}, []
    while any(left.values()):
        chosen = {"block_": "pre_norm", **rest}
        for axis in sorted(axes, key=lambda axis: -len(left[axis])):
            legal = [v for v in left[axis] if is_legal({**chosen, axis: v})]
            legal = [v for v in legal if caches({**chosen, axis: v})][:1] or legal[:1]
            chosen |= {axis: legal[0]} if legal else {}
        for axis, value in chosen.items():
            is_met = caches(chosen) or not caches({**rest, axis: value})
            if is_met and value in left.get(axis, ()):
                left[axis].remove(value)
        if chosen in found:
            assert rest, f"these never are: {left}"
            rest = {}
        else:
            found.append(chosen)
    return found


def covering(axes):
    """Returns the arguments of few points among which is every pair of values that is legal.

    Args:
      axes: argument of `point` to its values.
    """
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


@functools.cache
def every():
    """Returns a point by name for every kind on every axis, one away from a plain model."""
    found = {name: point(name) for name in (*BLOCKS, *PUBLISHED)}
    found |= {name: point("pre_norm", feedforward=name) for name in FEEDFORWARDS}
    found |= {name: point(weights=name) for name in WEIGHTS}
    found |= {name: point(embed_=name) for name in EMBEDS}
    found |= {f"keys of {plan}": point(kv_sharing=plan) for plan in PLANS}
    found |= {name: point(inject_=name) for name in INJECTS}
    found |= {name: point(copies=name) for name in COPIES}
    found |= {f"sharing {name}": point(sharing=name) for name in PATTERNS}
    found |= {
        f"{ends} before {name}": point("pre_norm", feedforward=name, ends=ends)
        for ends, name in UNLIKE
    }
    found |= {f"loop norm {name}": point(loop_norm=name) for name in ("each", "last")}
    found |= {name: point(depth_=name) for name in choices(DEPTHS, policy)}
    found |= {name: point("pre_norm", mixer=name) for name in mixer_choices()}
    for name in DEPTHS:
        with contextlib.suppress(ValueError):  # of a policy whose recursions make keys of their own
            found[f"{name}, first keys"] = point(depth_=name, kv_sharing="first_recursion")
    names = {config: name for name, config in reversed(found.items())}
    return {name: config for name, config in found.items() if names[config] == name}


def mixer_choices():
    """Returns the names of mixers, each also with each of its alternatives."""
    return choices(MIXERS, lambda kind: small("mixer", kind))


@functools.cache
def combined():
    """Returns few points by name, of several kinds at once: among them is each kind of `every`.

    Published blocks, which are combinations of kinds, are not.
    """
    axes = {
        "block_": BLOCKS,
        "mixer": mixer_choices(),
        "feedforward": FEEDFORWARDS,
        "depth_": choices(DEPTHS, policy),
        "weights": WEIGHTS,
        "embed_": EMBEDS,
        "kv_sharing": PLANS,
        "inject_": INJECTS,
        "copies": COPIES,
        "sharing": PATTERNS,
        "ends": ("alike", *outer()),
        "loop_norm": ("none", "each", "last"),
    }
    return {"; ".join(map(str, each.values())): point(**each) for each in together(axes)}
