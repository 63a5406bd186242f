"""A file of parts such as a user writes, one for every field that names a kind."""

import pathlib

FILE = '''
import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from recursia.blocks.pre_norm import PreNorm
from recursia.depth.policy import Aux, Policy
from recursia.embeddings.table import Table
from recursia.feedforward.swiglu import SwiGLU
from recursia.kv import Owners
from recursia.mixers.grouped_query import GroupedQuery
from recursia.optimizers.adamw import AdamW
from recursia.parameterisations.standard import Standard
from recursia.sharing.weights import Weights


@dataclasses.dataclass(frozen=True)
class Block(PreNorm):
    """A block."""


@dataclasses.dataclass(frozen=True)
class Mixer(GroupedQuery):
    """A mixer."""


@dataclasses.dataclass(frozen=True)
class FeedForward(SwiGLU):
    """A feed-forward."""


@dataclasses.dataclass(frozen=True)
class Depth(Policy):
    """Every recursion.

    Attributes:
      sign: a choice.
      factors: a list.
    """

    sign: Literal["plus", "minus"] = "plus"
    factors: tuple[float, ...] = (1.0,)

    def run(self, stack, params, x, context, call):
        x, report = stack.walk(x, context)
        return x, Aux({}, {}, jnp.full(x.shape[:2], self.num_recursions), None, report)


@dataclasses.dataclass(frozen=True)
class Tied(Weights):
    """Tied."""


@dataclasses.dataclass(frozen=True)
class Rows(Table):
    """A table."""


@dataclasses.dataclass(frozen=True)
class Plain(Standard):
    """Nothing follows from size."""


@dataclasses.dataclass(frozen=True)
class Sign(AdamW):
    """The sign of the gradient."""

    def direction(self, specs):
        return optax.scale_by_sign()


class Pairs(Owners):
    """Two neighbours read the keys of the first."""

    def owner(self, place, schedule):
        return place - place % 2
'''
FIELDS = {
    "model.block.kind": "Block",
    "model.block.mixer.kind": "Mixer",
    "model.embed.kind": "Rows",
    "model.block.feedforward.kind": "FeedForward",
    "model.depth.kind": "Depth",
    "model.weights.kind": "Tied",
    "model.parameterisation.kind": "Plain",
    "optimizer.kind": "Sign",
    "model.kv.kv_sharing": "Pairs",
}


def write(folder: pathlib.Path, module: str) -> dict[str, str]:
    """Writes the file; returns the fields that name its parts, as typed."""
    (folder / f"{module}.py").write_text(FILE)
    return {field: f"{module}.{name}" for field, name in FIELDS.items()}
