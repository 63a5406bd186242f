"""The slots of a batch on the device: requests that are each at a recursion of their own.

Three programs: one applies the core once to every slot, each at its own recursion of its own token;
one draws the next token where a token has left the core, and takes it through the prelude; one puts
a request into a slot. A slot is a row of the batch, not a slot of a block's weights.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from recursia import cache, model, stacks
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.depth.policy import Call
from recursia.generate.sampling import Sampling
from recursia.layers.attention import PADDING, Context, KeysValues
from recursia.layers.branch import Report
from recursia.layers.past import Past
from recursia.params import Leaf, at
from recursia.sharing import pending as waiting
from recursia.sharing.cached import CachedRecursion, CachedStack, Pasts, Store
from recursia.sharing.pending import Pending
from recursia.sharing.stack import LoopBody
from recursia.sharing.step_scan import Memory
from recursia.sharing.steps import Span
from recursia.stacks import CORE

VARYING = "varying"  # the section of banks whose entries differ between recursions
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
class _Fresh:
    """The keys and values that a step made of one token, and where they belong.

    Attributes:
      keys_values: of the token [K H].
      place: in the cache; beyond its end if the token takes none.
      count: 1, or 0 if it takes none.
    """

    keys_values: KeysValues
    place: Leaf
    count: Leaf


@struct.dataclass
class _Own(Past):
    """The cache that a step reads, to which it adds keys only in a recursion that makes them.

    Attributes:
      makes_keys: whether this one does.
    """

    makes_keys: Leaf = True  # []

    def append(self, made: KeysValues, context: Context) -> Past:
        """Returns the cache with the keys and values of a token, if the recursion makes them."""
        return Past.append(self, made, context.hide(jnp.broadcast_to(~self.makes_keys, (1, 1))))


@dataclasses.dataclass(frozen=True)
class _OneRecursion(CachedStack):
    """The core of which a depth policy runs one recursion, the number of which is traced.

    Banks whose entries differ between recursions are stacked; the others are tuples.

    Attributes:
      number: of the recursion.
      carry: before it; None stops before the first recursion.
      outputs: receives the carry after it, the caches, and whether another recursion follows.
    """

    number: Array
    carry: Any
    outputs: list[tuple[Any, Pasts, Array]]

    def loop_while(
        self, body: LoopBody, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs the recursion."""
        if self.carry is None:
            self.outputs.append((carry, {}, jnp.bool_(True)))
            return carry
        entries = jax.tree.map(jnp.asarray, entries)
        carry, _, pasts = self._once(body, self.carry, entries, self.number, self.store.pasts)
        follows = self.number + 1 < self.schedule.num_recursions
        self.outputs.append((carry, pasts, goes_on(carry) & follows))
        return carry

    def loop(
        self,
        body: LoopBody,
        carry: Any,
        entries: Any = None,
        recursions: range | None = None,
        cached: tuple = (),
    ) -> tuple[Any, Any, Report, tuple]:
        """Runs the recursion, which is followed by all others; there are no outs."""
        return self.loop_while(body, carry, entries, lambda _: jnp.bool_(True)), None, {}, ()

    def apply(
        self,
        x: Array,
        context: Context,
        span: Span,
        pasts: Pasts,
        *,
        memory: Memory | None = None,
        has_boundaries: bool = False,
    ) -> tuple[Array, Pasts]:
        """Applies every block of the core once; see `CachedStack.apply`."""
        pasts = dict(pasts)
        for block, past in pasts.items():
            scope = dataclasses.replace(context, window=int(self.schedule.seen[block]))
            inputs = None if memory is None else memory(x)
            weights = self.bind(self._entries(block))
            x, made, _ = self.block.apply(weights, x, scope, past, inputs)
            assert isinstance(made, Past)
            pasts[block] = made
        return x, pasts

    def _entries(self, step: int) -> dict[str, Any]:
        def entry(name: str, bank: Any) -> Any:
            index = self.schedule.by_recursion(name)[:, step]
            if isinstance(bank, tuple):
                return bank[min(int(index[0]), len(bank) - 1)]
            return at(bank, jnp.asarray(index)[self.number])

        return {name: entry(name, bank) for name, bank in self.banks.items()}

    def _recursion(self, number: Any, pasts: Pasts) -> CachedRecursion:
        span = Span(0, self.schedule.num_blocks, {}, (0,))
        return _Recursion(self, span, at(self.injected(), number), (), pasts, number)


@dataclasses.dataclass(frozen=True)
class _Recursion(CachedRecursion):
    """A recursion whose number is traced.

    Attributes:
      number: from 0.
    """

    number: Array

    def only(
        self, context: Context, going: Bool[Array, "B T"], active: Bool[Array, "B T"]
    ) -> Context:
        """Returns a context as `Recursion.only` does."""
        plan, every = self.steps.schedule, range(self.steps.schedule.num_recursions)
        is_source = jnp.array([plan.is_source(r) for r in every])[self.number]
        makes_keys = jnp.array([plan.makes_keys(r) for r in every])[self.number]
        is_first = self.number == 0
        counted = jnp.where(is_source, is_first | active, going)
        hidden = jnp.where(is_source, ~is_first & ~active, makes_keys & ~going)
        segments = 1 if context.segment_ids is None else context.segment_ids
        shown = jnp.where(hidden, PADDING, segments)
        return dataclasses.replace(context.count_only(counted), segment_ids=shown)


def unstack(params: dict[str, Any], config: Model) -> dict[str, Any]:
    """Returns parameters for slots: those of `cache.unstack`, and the core's banks by recursion.

    Args:
      params: float32, with the entries of a bank stacked.
      config: the model.
    """
    apart = cache.unstack(params, config)
    stack = lambda bank: jax.tree.map(lambda *leaves: jnp.stack(leaves), *bank)
    varying = {n: stack(bank) for n, bank in apart[CORE].items() if config.schedule.varies(n)}
    return {**apart, VARYING: varying}


def empty(
    params: dict[str, Any], config: Model, num_slots: int, size: int, catches_up: bool
) -> Slots:
    """Returns slots without a request.

    Args:
      params: of `unstack`.
      config: the model.
      num_slots: rows of the batch.
      size: tokens of the longest text.
      catches_up: whether tokens leave early whose later keys may be missing.
    """

    def one(params: dict[str, Any]) -> Slots:
        held = _held(config, cache.empty(config, 1, size), size)
        entered = jnp.zeros((1, 1, 1, config.block.embed_dim), config.dtype)
        position = jnp.zeros(1, jnp.int32)
        carry = jax.vmap(functools.partial(_begin, params, config))(entered, position)
        context = _context(config, position, entered[0])
        alone = waiting.empty(at(carry, 0), context, size)
        pending = jax.tree.map(lambda leaf: leaf[None], alone) if catches_up else None
        keys = jax.random.key_data(jax.random.key(0))[None]
        return Slots(held, entered, carry, entered, position, position, keys, pending)

    zeros = lambda leaf: jnp.zeros((num_slots, *leaf.shape[1:]), leaf.dtype)
    slots = jax.tree.map(zeros, jax.eval_shape(one, params))
    return dataclasses.replace(slots, keys=jax.random.wrap_key_data(slots.keys))


def _held(config: Model, held: Cache, size: int) -> Held:
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


def _context(config: Model, position: Array, x: Array | None) -> Context:
    """Returns the context of a batch of single tokens.

    Args:
      config: the model.
      position: of each [B].
      x: states that entered the core [B 1 D]; None outside of it.
    """
    ones = jnp.ones((len(position), 1), jnp.int32)
    inputs = x if config.inject.needs_input else None
    return Context(position[:, None], ones, is_live=ones > 0, inputs=inputs)


def _run(
    params: dict[str, Any],
    config: Model,
    x: Array,
    carry: Any,
    position: Array,
    number: Array,
    pasts: Pasts,
) -> tuple[Array, tuple[Any, Pasts, Array]]:
    """Runs one recursion of the depth policy for one token; returns also what the stack gives."""
    stack = model.stacks_of(params, config)[CORE]
    fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(stack)}
    fields["banks"] = {**fields["banks"], **params[VARYING]}
    how = {"store": Store(pasts), "resume": None, "context": None, "is_whole": False}
    outputs: list[tuple[Any, Pasts, Array]] = []
    one = _OneRecursion(**fields, **how, number=number, carry=carry, outputs=outputs)
    context = _context(config, position[None], x)
    call = Call("causal", wanted=context.is_live)
    left, _ = config.depth.run(one, params["depth"], x, context, call)
    (output,) = outputs
    return left, output


def _begin(params: dict[str, Any], config: Model, x: Array, position: Array) -> Any:
    """Returns the carry of a token that enters the core."""
    return _run(params, config, x, None, position, jnp.int32(0), {})[1][0]


def recur(
    params: dict[str, Any], config: Model, slots: Slots, is_running: Bool[Array, "S"]
) -> tuple[Slots, Bool[Array, "S"]]:
    """Applies the core once to every slot; returns also whether its token takes a further one.

    Args:
      params: of `unstack`.
      config: the model.
      slots: the batch.
      is_running: slots whose token takes the recursion; others stay as they are.
    """
    counts = {block: past.used.shape[1] for block, past in enumerate(slots.held[CORE])}

    def one(own: Slots, is_running: Array) -> tuple[Slots, Array, tuple[_Fresh, ...], Array]:
        """Runs the recursion in one slot; returns apart what is to be added to its caches."""

        def past(block: int, past: Past) -> _Own:
            past = at(past, own.number if counts[block] > 1 else 0)
            past = jax.tree.map(lambda leaf: leaf[None], past)
            makes_keys = jnp.bool_(True) if counts[block] > 1 else own.number == 0
            return _Own(past.keys_values, past.positions, past.used, makes_keys)

        before: Pasts = {block: past(block, each) for block, each in enumerate(own.held[CORE])}
        late = _late(own)
        given = own if late is None else late[1]
        run = given.entered, given.carry, given.position, own.number, before
        left, (carry, after, goes_on) = _run(params, config, *run)
        fresh = tuple(_fresh(before[block], after[block]) for block in before)
        own = dataclasses.replace(own, held={})
        done = dataclasses.replace(own, carry=carry, left=left, number=own.number + 1)
        if late is not None and own.pending is not None:
            is_late, given, index = late
            stops = is_running & ~is_late & ~goes_on
            index = jnp.where(stops, own.pending.used[:, None], index)
            index = jnp.where(is_running, index, own.pending.depth.shape[1])
            context = _context(config, given.position[None], given.entered)
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
        _put(past, rows, slots.number if counts[block] > 1 else 0, position, fresh[block])
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


def _fresh(before: Past, after: Past) -> _Fresh:
    """Returns what was added to the caches of a batch of single tokens."""
    count = after.used - before.used
    rows, place = jnp.arange(len(count)), jnp.minimum(before.used, before.size - 1)
    made = jax.tree.map(lambda leaf: leaf[rows, place], after.keys_values)
    return _Fresh(made, jnp.where(count > 0, before.used, before.size), count)


def _put(past: Past, rows: Array, owner: Any, position: Array, fresh: _Fresh) -> Past:
    """Returns the caches of all slots with what was added in some; rows beyond the last drop."""
    owner = jnp.broadcast_to(owner, rows.shape)

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[rows, owner, fresh.place].set(new.astype(leaf.dtype), mode="drop")

    return Past(
        jax.tree.map(put, past.keys_values, fresh.keys_values),
        put(past.positions, position),
        past.used.at[rows, owner].add(fresh.count, mode="drop"),
    )


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
        fresh = [_fresh(before[block], store.pasts[block]) for block in before]
        pairs = zip(held[name], fresh, strict=True)
        return {**held, name: tuple(_put(past, rows, 0, position, new) for past, new in pairs)}

    return Store(before), back


def enter(
    params: dict[str, Any],
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
    context, held = _context(config, position, None), slots.held
    by_name = model.stacks_of(params, config)
    back = None
    if "prelude" in held:
        store, back = _walk("prelude", held, rows, position)
        by_name |= stacks.with_caches({"prelude": by_name["prelude"]}, {"prelude": store})
    x = model.enter(params, token[:, None], config, context, by_name)[0]
    if back is not None:
        held = back(store)
    x = x[:, None]
    carry = jax.vmap(functools.partial(_begin, params, config))(x, position)
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
    params: dict[str, Any], config: Model, sampling: Sampling, slots: Slots, rows: Int[Array, "W"]
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
    hidden, _ = model.finish(params, x, _context(config, position, None), config, by_name)
    if back is not None:
        slots = dataclasses.replace(slots, held=back(store))
    logits = model.logits(params, hidden[:, 0], config)
    draws = jax.vmap(jax.random.fold_in)(pick(slots.keys), position + 1)
    token = sampling.draw(logits, draws)
    return enter(params, config, slots, rows, token, position + 1), token


def read(
    params: dict[str, Any],
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
    params: dict[str, Any],
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
        held=jax.tree.map(put, slots.held, _held(config, held, size)),
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
        return f"depth.kind {config.depth.kind!r}: reads whole texts, and no KV cache can stand for"
    if plan.order != "cycle":
        return f"sharing {config.sharing!r}: goes block by block, and slots go by recursions"
    if matrices:
        return f"sharing: recursions have {', '.join(matrices)} of their own, and share none"
    if not is_own:
        return f"kv.kv_sharing {config.kv.kv_sharing!r}: takes 'own' or 'first_recursion'"
    if (windows != windows[0]).any():
        return f"kv.window {config.kv.window!r}: differs between recursions"
    return ""
