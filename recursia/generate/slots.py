"""The slots of a batch on the device: requests that are each at a recursion of their own.

A slot is a row of the batch, not a slot of a block's weights.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from recursia import cache
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.generate import single
from recursia.layers.attention import KeysValues
from recursia.layers.past import Past
from recursia.params import Leaf, Params, at
from recursia.sharing import pending as waiting
from recursia.sharing.pending import Pending
from recursia.stacks import CORE

Held = dict[str, tuple[Past, ...]]  # by stack and block; leaves [S O P ...], of O recursions


@struct.dataclass
class Slots:
    """A batch of requests, each at a recursion of its own token.

    Attributes:
      held: KV caches: those of a block of the core in every recursion that makes keys.
      entered: states that entered the core.
      carry: what the depth policy carries from one recursion to the next.
      left: states after the last recursion so far, as they would leave the core.
      position: of the token.
      number: recursions that it has taken.
      keys: of the draws.
      pending: tokens that stopped early, and whose later keys are made when the token at hand needs
        them, one in a recursion of the batch; None if no token ever needs them.
    """

    held: Held
    entered: Leaf  # [S 1 1 D]
    carry: Any  # [S ...], each of a batch of one token
    left: Leaf  # [S 1 1 D]
    position: Leaf  # [S]
    number: Leaf  # [S]
    keys: Leaf  # [S]
    pending: Pending | None  # [S ...], each of a batch of one text


@struct.dataclass
class Fresh:
    """The keys and values that a step made of one token, and where they belong.

    Attributes:
      keys_values: of the token [K H].
      place: in the cache; beyond its end if the token takes none.
      count: 1, or 0 if it takes none.
    """

    keys_values: KeysValues
    place: Leaf
    count: Leaf


def empty(params: Params, config: Model, num_slots: int, size: int, catches_up: bool) -> Slots:
    """Returns slots without a request.

    Args:
      params: of `unstack`.
      config: the model.
      num_slots: rows of the batch.
      size: tokens of the longest text.
      catches_up: whether tokens leave early whose later keys may be missing.
    """

    def one(params: Params) -> Slots:
        held = by_block(config, cache.empty(config, 1, size), size)
        entered = jnp.zeros((1, 1, 1, config.block.stream_dim), config.dtype)
        position = jnp.zeros(1, jnp.int32)
        carry = jax.vmap(functools.partial(single.begin, params, config))(entered, position)
        context = single.context_of(config, position, entered[0])
        alone = waiting.empty(at(carry, 0), context, size)
        pending = jax.tree.map(lambda leaf: leaf[None], alone) if catches_up else None
        keys = jax.random.key_data(jax.random.key(0))[None]
        return Slots(held, entered, carry, entered, position, position, keys, pending)

    zeros = lambda leaf: jnp.zeros((num_slots, *leaf.shape[1:]), leaf.dtype)
    slots = jax.tree.map(zeros, jax.eval_shape(one, params))
    return dataclasses.replace(slots, keys=jax.random.wrap_key_data(slots.keys))


def by_block(config: Model, held: Cache, size: int) -> Held:
    """Returns caches by block, with as many places in each: leaves [S O P ...]."""
    plan = config.schedule

    def block(name: str, number: int) -> Past:
        pasts = held.pasts[name]
        owners = sorted(o for o in pasts if name != CORE or o % plan.num_blocks == number)
        owners = owners if name == CORE else [number]
        each = [pasts[owner].resized(size) for owner in owners]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *each)

    counts = {**config.ends, CORE: plan.num_blocks}
    return {name: tuple(block(name, k) for k in range(counts[name])) for name in held.pasts}


def added(before: Past, after: Past) -> Fresh:
    """Returns what was added to the caches of a batch of single tokens."""
    count = after.used - before.used
    rows, place = jnp.arange(len(count)), jnp.minimum(before.used, before.size - 1)
    made = jax.tree.map(lambda leaf: leaf[rows, place], after.keys_values)
    return Fresh(made, jnp.where(count > 0, before.used, before.size), count)


def joined(past: Past, rows: Array, owner: Any, position: Array, fresh: Fresh) -> Past:
    """Returns the caches of all slots with what was added in some; rows beyond the last drop."""
    owner = jnp.broadcast_to(owner, rows.shape)

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[rows, owner, fresh.place].set(new.astype(leaf.dtype), mode="drop")

    return Past(
        jax.tree.map(put, past.keys_values, fresh.keys_values),
        put(past.positions, position),
        past.used.at[rows, owner].add(fresh.count, mode="drop"),
    )


def refusal(config: Model) -> str:
    """Returns why a model cannot be served by recursions, in one line; empty if it can."""
    plan = config.schedule
    matrices = [
        slot
        for slot, tree in config.block_specs.items()
        if plan.varies(slot) and any(len(spec.shape) > 1 for spec in jax.tree.leaves(tree))
    ]
    steps = np.arange(plan.num_steps)
    is_own = (plan.owners == steps).all() or (plan.owners == steps % plan.num_blocks).all()
    windows = plan.seen.reshape(plan.num_recursions, plan.num_blocks)
    if not config.is_incremental:
        return (
            f"depth.kind {config.depth.kind!r}: reads whole texts, for which no KV cache can stand"
        )
    if config.embed.attention is not None:
        return "embed: tokens attend to each other in it, and slots keep keys of recursions alone"
    if config.parallel.num_copies > 1:
        return "parallel.num_copies: a text is a row for each copy, and a slot is one row; takes 1"
    if plan.order != "cycle":
        return f"sharing {config.sharing!r}: goes block by block, and slots go by recursions"
    if matrices:
        return f"sharing: recursions have {', '.join(matrices)} of their own, and share none"
    if len(set(plan.shapes)) > 1:
        return "weights: recursions have different widths, and slots share one program"
    if not is_own:
        return f"kv.kv_sharing {config.kv.kv_sharing!r}: takes 'own' or 'first_recursion'"
    if plan.replays:
        return f"kv.reads {config.kv.reads!r}: slots keep no queries; takes 'keys_values'"
    if (windows != windows[0]).any():
        return f"kv.window {config.kv.window!r}: differs between recursions"
    return ""
