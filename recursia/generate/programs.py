"""The programs of slots: a recursion of all, the next token of some, a request into one.

One applies the core once to every slot, each at its own recursion of its own token; one draws the
next token where a token has left the core, and takes it through the prelude; one puts a request
into a slot.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from recursia import model, stacks
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.generate import single
from recursia.generate.sampling import Sampling
from recursia.generate.slots import Fresh, Held, Slots, added, by_block, joined
from recursia.layers.past import Past
from recursia.params import Params, at
from recursia.sharing.cached import Pasts, Store
from recursia.stacks import CORE


def recur(
    params: Params, config: Model, slots: Slots, is_running: Bool[Array, "S"]
) -> tuple[Slots, Bool[Array, "S"]]:
    """Applies the core once to every slot; returns also whether its token takes a further one.

    Args:
      params: of `unstack`.
      config: the model.
      slots: the batch.
      is_running: slots whose token takes the recursion; others stay as they are.
    """
    counts = {block: past.used.shape[1] for block, past in enumerate(slots.held[CORE])}

    def one(own: Slots, is_running: Array) -> tuple[Slots, Array, tuple[Fresh, ...], Array]:
        """Runs the recursion in one slot; returns apart what is to be added to its caches."""

        def past(block: int, past: Past) -> single.OwnPast:
            past = at(past, own.number if counts[block] > 1 else 0)
            past = jax.tree.map(lambda leaf: leaf[None], past)
            makes_keys = jnp.bool_(True) if counts[block] > 1 else own.number == 0
            return single.OwnPast(
                past.keys_values, past.positions, past.used, makes_keys=makes_keys
            )

        before: Pasts = {block: past(block, each) for block, each in enumerate(own.held[CORE])}
        late = _late(own)
        given = own if late is None else late[1]
        run = given.entered, given.carry, given.position, own.number, before
        left, (carry, after, goes_on) = single.run(params, config, *run)
        fresh = tuple(added(before[block], after[block]) for block in before)
        own = dataclasses.replace(own, held={})
        done = dataclasses.replace(own, carry=carry, left=left, number=own.number + 1)
        if late is not None and own.pending is not None:
            is_late, given, index = late
            stops = is_running & ~is_late & ~goes_on
            index = jnp.where(stops, own.pending.used[:, None], index)
            index = jnp.where(is_running, index, own.pending.depth.shape[1])
            context = single.context_of(config, given.position[None], given.entered)
            kept = own.pending.put(index, carry, context, done.number, stops.astype(jnp.int32))
            own, done = (dataclasses.replace(each, pending=kept) for each in (own, done))
            goes_on |= is_late
            done = jax.tree.map(lambda new, old: jnp.where(is_late, old, new), done, own)
        keep = lambda new, old: jnp.where(is_running, new, old)
        done = dataclasses.replace(jax.tree.map(keep, done, own), pending=done.pending)
        return done, goes_on & is_running, fresh, given.position

    done, goes_on, fresh, position = jax.vmap(one)(slots, is_running)
    fresh = jax.tree.map(lambda leaf: leaf[:, 0], fresh)
    rows = jnp.where(is_running, jnp.arange(len(is_running)), len(is_running))
    core = tuple(
        joined(past, rows, slots.number if counts[block] > 1 else 0, position, fresh[block])
        for block, past in enumerate(slots.held[CORE])
    )
    return dataclasses.replace(done, held={**slots.held, CORE: core}), goes_on


def _late(own: Slots) -> tuple[Array, Slots, Int[Array, "1 1"]] | None:
    """Returns whether an earlier token of a slot has to take the recursion first, and that token.

    Args:
      own: one slot.

    Returns:
      Also its place among those that wait, beyond the last if there is none; None if no token ever
      waits.
    """
    if own.pending is None:
        return None
    size = own.pending.depth.shape[1]
    waits = own.pending.waits(own.number)[0]
    is_late, index = waits.any(), jnp.argmax(waits)[None, None]
    carry, context = own.pending.take(index, own.carry)
    inputs = own.entered if context.inputs is None else context.inputs
    late = dataclasses.replace(own, carry=carry, position=context.positions[0, 0], entered=inputs)
    given = jax.tree.map(lambda new, old: jnp.where(is_late, new, old), late, own)
    return is_late, given, jnp.where(is_late, index, size)


def _walk(
    name: str, held: Held, rows: Array, position: Array
) -> tuple[Store, Callable[[Store], Held]]:
    """Returns the caches of some rows of an unshared stack, and the function that puts them back.

    Args:
      name: of the stack.
      held: the caches of all slots.
      rows: some slots.
      position: of their tokens.
    """
    pick = lambda past: jax.tree.map(lambda leaf: leaf.at[rows, 0].get(mode="clip"), past)
    before = {block: pick(past) for block, past in enumerate(held[name])}

    def back(store: Store) -> Held:
        fresh = [added(before[block], store.pasts[block]) for block in before]
        pairs = zip(held[name], fresh, strict=True)
        return {**held, name: tuple(joined(past, rows, 0, position, new) for past, new in pairs)}

    return Store(before), back


def enter(
    params: Params,
    config: Model,
    slots: Slots,
    rows: Int[Array, "W"],
    token: Int[Array, "W"],
    position: Int[Array, "W"],
) -> Slots:
    """Takes tokens through the embedding and the prelude: they begin in these slots.

    Args:
      params: of `unstack`.
      config: the model.
      slots: the batch.
      rows: slots; what is beyond the last is left out.
      token: of each.
      position: of the token.
    """
    context, held = single.context_of(config, position, None), slots.held
    by_name = model.stacks_of(params, config)
    back = None
    if "prelude" in held:
        store, back = _walk("prelude", held, rows, position)
        by_name |= stacks.with_caches({"prelude": by_name["prelude"]}, {"prelude": store})
    x, *_ = model.enter(params, token[:, None], config, context, by_name)
    if back is not None:
        held = back(store)
    x = x[:, None]
    carry = jax.vmap(functools.partial(single.begin, params, config))(x, position)
    put = lambda leaf, new: leaf.at[rows].set(new, mode="drop")
    return dataclasses.replace(
        slots,
        held=held,
        entered=put(slots.entered, x),
        carry=jax.tree.map(put, slots.carry, carry),
        position=put(slots.position, position),
        number=put(slots.number, jnp.zeros_like(position)),
    )


def turn(
    params: Params, config: Model, sampling: Sampling, slots: Slots, rows: Int[Array, "W"]
) -> tuple[Slots, Int[Array, "W"]]:
    """Draws the next token of slots whose token has left the core; it begins there.

    Args:
      params: of `unstack`.
      config: the model.
      sampling: of the tokens.
      slots: the batch.
      rows: slots; what is beyond the last is left out.
    """
    pick = lambda leaf: leaf.at[rows].get(mode="clip")
    x, position = pick(slots.left)[:, 0], pick(slots.position)
    by_name, back = model.stacks_of(params, config), None
    if "coda" in slots.held:
        store, back = _walk("coda", slots.held, rows, position)
        by_name |= stacks.with_caches({"coda": by_name["coda"]}, {"coda": store})
    hidden, _ = model.finish(params, x, single.context_of(config, position, None), config, by_name)
    if back is not None:
        slots = dataclasses.replace(slots, held=back(store))
    logits = model.logits(params, hidden[:, 0], config)
    draws = jax.vmap(jax.random.fold_in)(pick(slots.keys), position + 1)
    token = sampling.draw(logits, draws)
    return enter(params, config, slots, rows, token, position + 1), token


def read(
    params: Params,
    config: Model,
    tokens: Int[Array, "1 T"],
    held: Cache,
    first: Int[Array, ""],
    length: Int[Array, ""],
) -> tuple[Array, Cache]:
    """Reads a part of a prompt; returns the states of its last token, if they are there [1 D].

    Its tokens take all recursions whose keys later tokens may need.

    Args:
      params: of `unstack`.
      config: the model.
      tokens: of the prompt, and padding.
      held: the KV caches of the tokens before.
      first: position of the first.
      length: tokens of the prompt.
    """
    places = first + jnp.arange(tokens.shape[1])[None]
    segments = (places < length).astype(jnp.int32)
    hidden, held = model.extend(
        params, tokens, config, held, positions=places, segment_ids=segments, is_whole=True
    )
    last = jnp.clip(length - 1 - first, 0, tokens.shape[1] - 1)
    return hidden[:, last], held


def install(
    params: Params,
    config: Model,
    sampling: Sampling,
    slots: Slots,
    row: Int[Array, ""],
    prompt: tuple[Array, Cache, Int[Array, ""]],
    key: Array,
) -> tuple[Slots, Int[Array, "1"]]:
    """Puts a request into a slot; its first token is drawn, and begins there.

    Args:
      params: of `unstack`.
      config: the model.
      sampling: of the tokens.
      slots: the batch.
      row: the slot.
      prompt: what `read` returned of its end, and its length.
      key: of the draws.
    """
    hidden, held, length = prompt
    size = slots.held[CORE][0].positions.shape[-1]
    put = lambda leaf, new: leaf.at[row].set(new[0].astype(leaf.dtype))
    slots = dataclasses.replace(
        slots,
        held=jax.tree.map(put, slots.held, by_block(config, held, size)),
        keys=slots.keys.at[row].set(key),
        pending=jax.tree.map(lambda leaf: leaf.at[row].set(leaf.dtype.type(0)), slots.pending),
    )
    logits = model.logits(params, hidden, config)
    token = sampling.draw(logits, jax.random.fold_in(key, length)[None])
    return enter(params, config, slots, row[None], token, length[None]), token


class Programs(NamedTuple):
    """The compiled programs of a model's slots; `Slots` and caches that are given are used up."""

    recur: Any
    read: Any
    install: Callable[[Sampling], Any]
    turn: Callable[[Sampling], Any]


@functools.lru_cache(maxsize=16)
def compiled(config: Model) -> Programs:
    """Returns the programs, which take their arguments without the model and the sampling."""

    def jitted(run: Callable, donated: int, *fixed: Any) -> Any:
        moved = lambda params, *given: run(params, config, *fixed, *given)
        return jax.jit(moved, donate_argnums=donated)

    sampled = lambda run: functools.lru_cache(maxsize=64)(functools.partial(jitted, run, 1))
    return Programs(jitted(recur, 1), jitted(read, 2), sampled(install), sampled(turn))
