"""The base of mixers: attention to a step's own keys and values, or to those of another step."""

import abc
import copy
import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.layers.attention import Context, KeysValues, QueriesKeys, attend
from recursia.layers.balance import Usage
from recursia.layers.branch import Branch, Report, States
from recursia.layers.experts import Choice
from recursia.layers.past import Made, Past, Source
from recursia.params import Initializer, Leaf, Params, Spec

Heads = Float[Array, "B T N H"]
Mixed = Float[Array, "B T N W"]  # a value for each query
PREFIX = "prefix"  # the slot of learned keys and values


class Queries(NamedTuple):
    """The queries of a step, and the experts that projected them.

    Attributes:
      heads: queries [B T N H].
      relative: relative position bias of each query's scores [B T N R]; None adds nothing.
      choice: the experts that projected them; None without experts.
      usage: router statistics of those experts.
    """

    heads: Leaf
    relative: Leaf | None = None
    choice: Choice | None = None
    usage: Usage | None = None


class Mixer(Branch):
    """A layer in which tokens attend to each other.

    Attributes:
      num_heads: attention heads.
      head_dim: width of a head.
      key_weights: (slot, name) of weights that only make keys and values: a step that reads those
        of another step has no use for them.
      score_weights: the same of queries and keys. None: a step cannot replay those of another.
      score_scale: factor of the scores; None is 1 / sqrt(head_dim).
      score_cap: soft cap of the scores, cap * tanh(score / cap); 0 has none.
      feedforward: of the block of a layer that `beside` returned, whose slots `uses` names; None
        if it uses none.
      has_relative: whether queries have a relative position bias.
    """

    num_heads: int
    head_dim: int

    feedforward: ClassVar[Branch | None] = None
    has_relative: ClassVar[bool] = False
    norm_name = "attention"
    score_scale: float | None = None
    score_cap: float = 0.0
    key_weights: ClassVar[tuple[tuple[str, str], ...]]
    score_weights: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def query_width(self) -> int:
        """Width of all queries of a token together."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token together."""
        return self.num_heads * self.head_dim

    def beside(self, feedforward: Branch) -> "Mixer":
        """Returns the layer in a block with this feed-forward, whose slots it may use.

        Raises:
          ValueError: if it uses slots (`uses`) that the feed-forward does not have.
        """
        if missing := set(self.uses) - set(feedforward.slots):
            raise ValueError(
                f"mixer: uses the weights of slot {min(missing)!r}, and the feed-forward has "
                f"{', '.join(feedforward.slots)}; take one such as 'glu_moe'"
            )
        if not self.uses:
            return self
        vars(made := copy.copy(self)).update(feedforward=feedforward)
        return made

    def narrowed(self, part: float) -> "Mixer":
        """Returns the layer with a part of its heads, whose weights are the first of this one's.

        Args:
          part: in (0, 1].

        Raises:
          ValueError: if heads of this kind cannot be left out.
        """
        if part == 1:
            return self
        raise ValueError(
            "weights.heads: this mixer has no heads that a step can leave out; take 1.0, or a "
            "mixer such as 'grouped_query'"
        )

    @abc.abstractmethod
    def queries(self, params: Params, h: States, context: Context) -> Queries:
        """Returns the queries of normalised states."""

    @abc.abstractmethod
    def keys_values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys and values, and the statistics of a router of values.

        Args:
          params: as in `apply`.
          x: states that values are made of.
          h: normalised states that keys are made of, and that routers read.
          context: as in `apply`.
        """

    def values(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[Heads, Usage | None]:
        """Returns the values of `keys_values` alone; only mixers with `score_weights` need it."""
        raise NotImplementedError

    @abc.abstractmethod
    def outputs(
        self, params: Params, mixed: Mixed, h: States, queries: Queries, context: Context
    ) -> tuple[States, Usage | None]:
        """Returns the writes to the residual stream, and the statistics of a router of outputs.

        Args:
          params: as in `apply`.
          mixed: the values that each head attended to.
          h: normalised states, which gates and routers read.
          queries: as `queries` returned them.
          context: as in `apply`.
        """

    def report(self, values: Usage | None, outputs: Usage | None) -> Report:
        """Returns the report of a step.

        Args:
          values: statistics of the router of values; None if the step read another's values.
          outputs: statistics of the router of outputs.
        """
        return {}

    def apply(
        self,
        params: Params,
        x: States,
        h: States,
        context: Context,
        source: Source | None = None,
        memory: tuple[States, States] | None = None,
    ) -> tuple[States, Made | None, Report]:
        """Returns the writes to the residual stream, the keys and values made, and a report.

        Args:
          params: by slot, in the compute dtype; those of `exact` in float32.
          x: states that values are made of.
          h: states that queries, keys and routers are made of; `x` again in most arrangements of
            norms.
          context: positions, documents and padding of the tokens.
          source: keys and values to read instead of making them, with their tokens' context; or
            the KV cache of the step, to which those made here are added before it is read; or
            queries and keys to replay, with the context of the keys, or with the KV cache of the
            step, which has values alone.
          memory: another `x` and `h` of the same tokens, to make keys and values of.
        """
        read = source[0] if isinstance(source, tuple) else None
        is_replay = isinstance(read, QueriesKeys)
        queries = Queries(read.query) if is_replay else self.queries(params, h, context)
        met, where, made, value_usage = self._met(params, *(memory or (x, h)), context, source)
        how = queries.relative, self.score_scale, self.score_cap
        prefix = self._prefix(params, len(x))
        mixed = attend(queries.heads, met, context, where, *how, prefix=prefix)
        y, usage = self.outputs(params, mixed, h, queries, context)
        if context.is_replayed and isinstance(made, KeysValues):
            made = QueriesKeys(queries.heads, made.key)
        elif context.is_replayed and isinstance(made, Past):
            made = dataclasses.replace(made, query=queries.heads)
        return y, made, self.report(value_usage, usage)

    def _prefix(self, params: Params, rows: int) -> KeysValues | None:
        """Returns the learned keys and values that each row sees; None has none."""
        if PREFIX not in params:
            return None
        by_row = lambda leaf: jnp.tile(leaf, (rows // len(leaf), 1, 1, 1))
        return KeysValues(*(by_row(params[PREFIX][name]) for name in ("key", "value")))

    def value_dim(self, width: int) -> int:
        """Returns the width of a value, in a stream of this width."""
        return self.head_dim

    def prefix_specs(
        self, width: int, num_copies: int, num_tokens: int, init: Initializer
    ) -> Params:
        """Returns the learned keys and values of a step, by slot: other ones for each copy.

        Args:
          width: of the residual stream.
          num_copies: of the model, on neighbouring rows.
          num_tokens: as many keys as those have.
          init: of all.
        """
        shape = num_copies, num_tokens, self.key_width // self.head_dim
        spec = lambda size: Spec(
            (*shape, size), (None, None, "kv_heads", None), init, is_matrix=False
        )
        return {PREFIX: {"key": spec(self.head_dim), "value": spec(self.value_dim(width))}}

    def _met(
        self, params: Params, x: States, h: States, context: Context, source: Source | None
    ) -> tuple[KeysValues, Context, KeysValues | Past | None, Usage | None]:
        """Returns the keys and values that queries meet, with their context, and what was made.

        The last is the statistics of a router of values; the arguments are those of `apply`.
        """
        read, there = source if isinstance(source, tuple) else (None, source)
        if isinstance(read, KeysValues) and isinstance(there, Context):
            return read, there, None, None
        if isinstance(read, QueriesKeys):
            value, usage = self.values(params, x, h, context)
            made = KeysValues(None, value)
        else:
            made, usage = self.keys_values(params, x, h, context)
        if isinstance(there, Past):
            there = there.append(made, context)
            met, where, kept = there.keys_values, there.context, there
        else:
            met, where, kept = made, there or context, made if read is None else None
        met = KeysValues(read.key, met.value) if isinstance(read, QueriesKeys) else met
        return met, where, kept, usage

    @abc.abstractmethod
    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          width: of the residual stream.
          keys: number of keys per query, masked ones included.
          is_reading: whether the step reads the keys and values of another step.
        """

    def score_flops(self, width: int) -> int:
        """Returns the forward FLOPs of one token's queries and keys, which a replay does without.

        Args:
          width: of the residual stream.
        """
        return 2 * width * (self.query_width + self.key_width)

    def recomputed_flops(self, keys: int | float) -> int | float:
        """Returns the FLOPs of one token that every backward pass recomputes: attention scores."""
        return 2 * self.query_width * keys

    def attention_flops(self, width: int, keys: int | float) -> int | float:
        """Returns the forward FLOPs of one token's products with keys and with values.

        Args:
          width: of the residual stream.
          keys: number of keys per query.
        """
        return 2 * self.recomputed_flops(keys)

    def cache_entries(self, width: int) -> int:
        """Returns how many numbers the KV cache of one step holds for one token.

        Args:
          width: of the residual stream.
        """
        return 2 * self.key_width

    def _input_projection(
        self, width: int, init: Initializer, num_heads: int | None = None, axis: str = "heads"
    ) -> Spec:
        """Returns the spec of a matrix from the stream to heads, by default all of the mixer's."""
        heads = self.num_heads if num_heads is None else num_heads
        return Spec((width, heads, self.head_dim), ("embed", axis, None), init)

    def _output_projection(self, width: int, init: Initializer) -> Spec:
        """Returns the spec of a matrix from all heads to the stream."""
        shape = (self.num_heads, self.head_dim, width)
        return Spec(shape, ("heads", None, "embed"), init, inputs=2)
