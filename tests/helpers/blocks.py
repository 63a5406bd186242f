"""Blocks for tests: published ones by name, and fields of their parts by short names."""

import dataclasses
import inspect
import types

from recursia import kinds
from recursia.configs import blocks
from recursia.layers.initial import Init

PARTS = ("mixer", "feedforward")
PUBLISHED = {  # by name, the function of widths that gives a block's values
    name: function
    for name, function in inspect.getmembers(blocks, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == blocks.__name__
}


def of(values, field="block"):
    """Returns the block that a preset's values describe, or a part of it."""
    values = dict(values)
    cls = kinds.config_class(field, values.pop("kind"))
    inner = {name: of(values[name], name) for name in PARTS if name in values}
    init = {"init": Init(**values["init"])} if "init" in values else {}
    return cls(**{**values, **inner, **init})


def published(name, **fields):
    """Returns a published block of these widths."""
    fields |= {"mim_weight": 0.1} if name == "sut" and "mim_weight" not in fields else {}
    return of(PUBLISHED[name](**fields))


def altered(block, **fields):
    """Returns a block with fields changed, each in whichever parts have it."""
    inner = {name: getattr(block, name) for name in PARTS}
    own = lambda part: {name: value for name, value in fields.items() if hasattr(part, name)}
    inner = {name: dataclasses.replace(part, **own(part)) for name, part in inner.items()}
    return dataclasses.replace(block, **inner, **own(block))


def arranged(block, kind):
    """Returns a block's parts in another arrangement."""
    return kinds.config_class("block", kind)(**vars(block))


def flat(block):
    """Returns all fields of a block and its parts under one name."""
    return types.SimpleNamespace(**{**vars(block.mixer), **vars(block.feedforward), **vars(block)})
