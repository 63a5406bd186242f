"""The layout of a model's parameters: their specs, their start, and those of another depth."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from recursia import params as parameters
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.layers import affine
from recursia.params import Params
from recursia.sharing import entries, key_banks


def specs(config: Model) -> Params:
    """Returns the specs of a model's parameters."""
    d, wide, plan = config.block.embed_dim, config.block.stream_dim, config.schedule
    outer = config.end_block.embed_dim

    def blocks(block: Block, slots: Params) -> Params:
        exact = (*block.exact, *config.weights.exact)
        marked = lambda slot, tree: parameters.mark(tree, is_exact=slot in exact, is_reused=False)
        return {slot: marked(slot, tree) for slot, tree in slots.items()}

    def scaled(tree: Any, uses: np.ndarray | None = None) -> Any:
        scale = functools.partial(config.parameterisation.scaled, size=config.size)

        def leaf(spec: Any) -> Any:
            if not parameters.is_apart(spec):
                return scale(spec, uses=uses)
            counts = (None,) * len(spec) if uses is None else np.split(uses, len(spec))
            pairs = zip(spec.entries, counts, strict=True)
            return parameters.Apart(scale(own, uses=count) for own, count in pairs)

        return jax.tree.map(leaf, tree, is_leaf=parameters.is_apart)

    def core(slot: str, *steps: Any) -> Any:
        def bank(name: str, steps: list[Any]) -> Any:
            made = entries.bank(plan, name, steps) if plan.shapes else plan.bank(name, steps[0])
            made = parameters.mark(made, is_reused=plan.is_reused(name))
            return scaled(made, plan.uses(name))

        banks = [key_banks.split(slot, tree, config.key_weights) for tree in steps]
        made = {name: bank(name, [own[name] for own in banks]) for name in banks[0]}
        return key_banks.join(made)[slot]

    embed, once = config.embed.specs(config.vocab_size, outer), np.ones(1, int)
    outside = blocks(config.end_block, config.end_specs)
    ends = {
        name: scaled(parameters.stack(outside, (count,), (None,)), once) if count else {}
        for name, count in config.ends.items()
    }
    steps = config.step_specs if plan.shapes else config.step_specs[:1]
    slots = [blocks(config.block, own | config.weights.specs(own)) for own in steps]
    depth = parameters.mark(config.depth.specs(plan, wide), is_matrix=False)
    sections = {
        "embed": {
            name: scaled(parameters.mark(s, is_exact=name == "bias")) for name, s in embed.items()
        },
        "prelude": ends["prelude"],
        "core": {slot: core(slot, *(own[slot] for own in slots)) for slot in slots[0]},
        "coda": ends["coda"],
        "depth": scaled(depth),
        "inject": scaled(config.inject.specs(plan.num_recursions, d)),
    }
    if config.is_resized:
        ways = {"up": (outer, d), "down": (d, outer)}
        maps = {way: affine.normed_specs(*pair, config.block.norm) for way, pair in ways.items()}
        sections["resize"] = scaled(parameters.mark(maps, is_exact=False))
    if average := config.parallel.specs(outer):
        sections["parallel"] = scaled(parameters.mark(average, is_exact=False))
    final = config.end_block.final_norm()
    return sections if final is None else {**sections, "final_norm": scaled(final)}


def at_depth(config: Model, params: Params, num_recursions: int) -> tuple[Model, Params]:
    """Returns the model with `num_recursions` recursions of its core, and its parameters.

    Raises:
      ValueError: for a depth that some slot or the depth policy has no weights for.
    """
    trained, config = config.schedule, config.at_depth(num_recursions)
    by_recursion = {name: specs(config)[name] for name in ("depth", "inject")}
    first = lambda spec, p: p[: spec.shape[0]] if spec.shape else p
    sections = jax.tree.map(first, by_recursion, {name: params[name] for name in by_recursion})

    def core(slot: str, tree: Any) -> Any:
        held = lambda bank: np.searchsorted(trained.held(bank), config.schedule.held(bank))
        banks = key_banks.split(slot, tree, config.key_weights)
        return key_banks.join({b: parameters.at(t, held(b)) for b, t in banks.items()})[slot]

    cut = {slot: core(slot, tree) for slot, tree in params["core"].items()}
    sections["core"] = entries.fitted(specs(config)["core"], cut) if trained.shapes else cut
    return config, {**params, **sections}


def init(config: Model, key: Array) -> Params:
    """Returns float32 parameters."""
    return parameters.init(specs(config), key)
