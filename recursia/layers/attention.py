"""Causal attention by positions and segments, for any subset of a row's tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia.kernels.routed_attention import Plan, Where, attention_plan, routed_attention
from recursia.params import Leaf
from recursia.sharding import is_split, locally

PADDING = 0  # segment id of padding
_TOLD = ("query_positions", "key_positions", "query_segments", "key_segments")
_TABLE = ("batch", "length")  # the shards that tables of a plan are of


@struct.dataclass
class Places:
    """Where tokens stand in their rows, for statistics that are of each token and not sums.

    Attributes:
      index: each token's place in its row.
      length: number of places of a row.
    """

    index: Leaf  # [B T]
    length: int = struct.field(pytree_node=False)


@struct.dataclass
class Context:
    """Positions, packed documents and padding of the tokens that a step processes.

    Attributes:
      positions: each token's position in its document, whichever of its tokens are processed. They
        ascend within a segment.
      segment_ids: each token's document in a packed row, from 1; 0 is padding. A token attends to
        its own segment only. None: one segment for all.
      is_live: False for padding, and for tokens whose result is computed and discarded: they take
        no expert's capacity and enter no statistics. None: all tokens are live.
      inputs: the states that entered the core, where a recursion injects them again.
      multiplier: what each branch of a block writes to the residual stream is multiplied by this;
        None leaves it as it is.
      plan: which blocks of keys the queries visit, for all layers; see `planned`. None: each call
        lists them.
      places: of the tokens in their rows, where routers report each token by itself; None: they
        report sums over tokens.
      is_row: whether these are all tokens of their rows, at positions 0, 1, 2, ...
      window: sliding window in tokens, the query's own included; 0 is no bound.
      sees_itself: whether a token attends to its own key; the first of a document that does not
        attends to none, and its result is 0.
      is_replayed: whether a step that makes queries and keys hands both on, to steps that replay
        them.
      keeps_states: whether steps report the states after their block.
    """

    positions: Leaf  # [B T]
    segment_ids: Leaf | None = None  # [B T]
    is_live: Leaf | None = None  # [B T]
    inputs: Leaf | None = None  # [B T D]
    multiplier: Leaf | None = None  # []
    plan: Plan | None = None
    places: Places | None = None
    is_row: bool = struct.field(pytree_node=False, default=False)
    window: int = struct.field(pytree_node=False, default=0)
    sees_itself: bool = struct.field(pytree_node=False, default=True)
    is_replayed: bool = struct.field(pytree_node=False, default=False)
    keeps_states: bool = struct.field(pytree_node=False, default=False)

    def take(self, index: Int[Array, "B C"]) -> "Context":
        """Returns the context of a subset of the tokens, whose indices ascend."""
        rows = jnp.arange(index.shape[0])[:, None]
        subset = replace(self, is_row=False, plan=None, multiplier=None)
        subset = jax.tree.map(lambda leaf: leaf[rows, index], subset)
        return replace(subset, multiplier=self.multiplier)

    def repeated(self, count: int) -> "Context":
        """Returns the context of rows each of which stands `count` times, one after the other."""
        rows = replace(self, plan=None, multiplier=None)
        rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), rows)
        return replace(rows, multiplier=self.multiplier)

    def count_only(self, live: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which other tokens are not live, but attended to all the same."""
        return replace(self, is_live=live if self.is_live is None else live & self.is_live)

    def hide(self, hidden: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which the hidden tokens are padding, to which none attends."""
        segments = 1 if self.segment_ids is None else self.segment_ids
        counted = self.count_only(~hidden)
        return replace(counted, plan=None, segment_ids=jnp.where(hidden, PADDING, segments))


@struct.dataclass
class KeysValues:
    """The keys and values of a context's tokens; no keys in the cache of a step that replays."""

    key: Leaf | None  # [... B S K H]
    value: Leaf  # [... B S K W]


@struct.dataclass
class QueriesKeys:
    """The rotated queries and keys of a step, which others replay with values of their own.

    The same scores follow from them as from the step's attention probabilities, and no step stores
    those.
    """

    query: Leaf  # [... B T N H]
    key: Leaf  # [... B S K H]


def attend(
    query: Float[Array, "B T N H"],
    source: KeysValues,
    context: Context,
    source_context: Context,
    relative: Float[Array, "B T N R"] | None = None,
    scale: float | None = None,
    cap: float = 0.0,
    prefix: KeysValues | None = None,
) -> Float[Array, "B T N W"]:
    """Causal grouped-query attention: a query sees keys of its segment at or before its position.

    Under sharding, query heads are split as key heads are, and queries as tokens are; each device
    reads the keys of all tokens.

    Args:
      query: rotated queries of the tokens in `context`.
      source: rotated keys, and values of any width W, of the tokens in `source_context`.
      context: of the queries.
      source_context: of the keys, whose tokens may be others than those of the queries.
      relative: relative position bias: the query's score of keys 0, 1, ... positions behind it;
        keys further behind take the last.
      scale: factor of the scores; None is 1 / sqrt(H).
      cap: soft cap of the scores, cap * tanh(score / cap); 0 has none.
      prefix: learned keys and values that every query of a row sees, without a position: none is
        rotated, and `relative` adds nothing to their scores.
    """
    told = _told(context, source_context, relative is not None)
    tables, tree = jax.tree.flatten(context.plan)
    window = context.window
    if not context.sees_itself:  # its query stands where that of the token before it stood
        window -= window > 0
        if relative is not None and relative.shape[-1] > 1:
            relative = relative[..., 1:]

    def run(query, key, value, relative, before, further, *rest: Array | None) -> Array:
        told, tables = rest[: len(_TOLD)], rest[len(_TOLD) :]
        return routed_attention(
            query,
            key,
            value,
            **dict(zip(_TOLD, told, strict=True)),
            plan=jax.tree.unflatten(tree, tables),
            relative=relative,
            prefix_key=before,
            prefix_value=further,
            scale=scale,
            cap=cap,
            window=window,
        )

    queries, keys = ("batch", "length", "kv_heads", None), ("batch", None, "kv_heads", None)
    before = (None, None) if prefix is None else (prefix.key, prefix.value)
    return locally(
        run,
        (query, source.key, source.value, relative, *before, *told, *tables),
        (
            *(queries, keys, keys, queries, keys, keys, *(queries[:2], keys[:2]) * 2),
            *((*_TABLE, *[None] * (table.ndim - 2)) for table in tables),
        ),
        queries,
    )


def planned(
    context: Context, source_context: Context, x: Array, query_shape: tuple[int, int]
) -> Context:
    """Returns the context of queries with the plan of their attention to the keys of another.

    Layers that apply to the same context share the plan. Nothing is planned where places say what
    a query sees.

    Args:
      context: of the queries.
      source_context: of the keys.
      x: states [B T D] of the tokens of the queries.
      query_shape: query heads of each key head, and their width.
    """
    told = _told(context, source_context, False)
    if told[0] is None or context.window:
        return context
    heads, width = query_shape

    def run(*told: Array | None) -> Plan:
        shape = lambda at, heads: jax.ShapeDtypeStruct((*at.shape, heads, width), x.dtype)
        return attention_plan(shape(told[0], heads), shape(told[1], 1), Where(*told))

    plan = locally(run, told, (("batch", "length"), ("batch", None)) * 2, _TABLE)
    return replace(context, plan=plan)


def _told(context: Context, source_context: Context, has_relative: bool) -> tuple[Leaf | None, ...]:
    """Returns positions and segments of queries and keys, None where places say as much."""
    is_whole = not is_split("length")
    is_whole &= context.sees_itself
    is_own = is_whole and source_context is context  # in order: places compare as positions do
    is_row = is_whole and context.is_row and source_context.is_row
    positions = [context.positions, source_context.positions]
    if not context.sees_itself:
        positions[0] = context.positions - 1
    if is_row or (is_own and not has_relative and not context.window):
        positions = [None, None]
    segments = [context.segment_ids, source_context.segment_ids]
    if is_own:
        segments = [context.segment_ids, None]
    elif segments[0] is None or segments[1] is None:  # None is segment 1, as in `hide`
        ids = lambda given, at: jnp.ones_like(at.positions) if given is None else given
        is_one = segments[0] is segments[1]
        pairs = zip(segments, (context, source_context), strict=True)
        segments = [None, None] if is_one else [ids(*pair) for pair in pairs]
    return *positions, *segments
