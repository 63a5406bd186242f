"""The stacks of a model: prelude, core and coda, each a schedule of blocks with its weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from recursia.architecture import Model
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.sharing.cached import CachedStack, Store
from recursia.sharing.remat import Remat
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack
from recursia.sharing.tied import Tied

CORE = "core"
EMBED = "embed"  # what stands for a stack where the embedding attends: one step


def schedules(config: Model) -> dict[str, Schedule]:
    """Returns the schedule of every stack that the model has, by name."""
    ends = {name: Schedule(1, count) for name, count in config.ends.items() if count}
    return {**ends, CORE: config.schedule}


def with_weights(
    params: Mapping[str, Any],
    config: Model,
    remat: Remat,
    norm: Callable[[Array], Array] | None,
    read: Callable[[Array, Context], Array],
) -> dict[str, Stack]:
    """Returns the stacks by name.

    Args:
      params: of the model, by section.
      config: the model.
      remat: what the backward pass computes again.
      norm: of the states after each recursion of the core; None has none.
      read: logits of states and the context of their tokens, as if the states were the last.
    """
    found = {}
    for name, plan in schedules(config).items():
        is_core = name == CORE
        found[name] = Stack(
            plan,
            config.block if is_core else config.end_block,
            config.step_weights if is_core else Tied(),
            params[name],
            config.inject if is_core else Injection(),
            params["inject"] if is_core else {},
            norm if is_core else None,
            config.dtype,
            remat.of_steps(plan) if is_core else remat.of_blocks(),
            read=read,
        )
    return found


def with_caches(
    stacks: Mapping[str, Stack],
    stores: Mapping[str, Store],
    resume: Callable[[CachedStack, Array, Context], None] | None = None,
    is_whole: bool = False,
) -> dict[str, CachedStack]:
    """Returns stacks that decode.

    Args:
      stacks: with weights, whose banks are tuples of entries (`cache.unstack`).
      stores: the KV caches of each.
      resume: see `CachedStack`; of the core.
      is_whole: see `CachedStack`.
    """
    found = {}
    for name, stack in stacks.items():
        fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(stack)}
        fields |= {"store": stores[name], "resume": resume if name == CORE else None}
        found[name] = CachedStack(**fields, context=None, is_whole=is_whole)
    return found
