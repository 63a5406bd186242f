"""The base of mixers: attention to a step's own keys and values, or to those of another step."""

import abc
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float

from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.balance import Usage
from recursia.layers.branch import Branch, Report, States
from recursia.layers.experts import Choice
from recursia.layers.past import Past
from recursia.params import Initializer, Leaf, Params, Spec

Heads = Float[Array, "B T N H"]


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
      score_scale: factor of the scores; None is 1 / sqrt(head_dim).
      score_cap: soft cap of the scores, cap * tanh(score / cap); 0 has none.
      has_relative: whether queries have a relative position bias.
    """

    num_heads: int
    head_dim: int

    has_relative: ClassVar[bool] = False
    norm_name = "attention"
    score_scale: float | None = None
    score_cap: float = 0.0
    key_weights: ClassVar[tuple[tuple[str, str], ...]]

    @property
    def query_width(self) -> int:
        """Width of all queries of a token together."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token together, and of all values."""
        return self.num_heads * self.head_dim

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

    @abc.abstractmethod
    def outputs(
        self, params: Params, mixed: Heads, h: States, queries: Queries, context: Context
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
        source: tuple[KeysValues, Context] | Past | None = None,
        memory: tuple[States, States] | None = None,
    ) -> tuple[States, KeysValues | Past | None, Report]:
        """Returns the writes to the residual stream, the keys and values made, and a report.

        Args:
          params: by slot, in the compute dtype; those of `exact` in float32.
          x: states that values are made of.
          h: states that queries, keys and routers are made of; `x` again in most arrangements of
            norms.
          context: positions, documents and padding of the tokens.
          source: keys and values to read instead of making them, with their tokens' context; or
            the KV cache of the step, to which those made here are added before it is read.
          memory: another `x` and `h` of the same tokens, to make keys and values of.
        """
        queries = self.queries(params, h, context)
        made, value_usage = None, None
        if source is None or isinstance(source, Past):
            made, value_usage = self.keys_values(params, *(memory or (x, h)), context)
            if source is None:
                source = made, context
            else:
                made = source.append(made, context)
                source = made.keys_values, made.context
        how = queries.relative, self.score_scale, self.score_cap
        mixed = attend(queries.heads, source[0], context, source[1], *how)
        y, usage = self.outputs(params, mixed, h, queries, context)
        return y, made, self.report(value_usage, usage)

    @abc.abstractmethod
    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          width: of the residual stream.
          keys: number of keys per query, masked ones included.
          is_reading: whether the step reads the keys and values of another step.
        """

    def recomputed_flops(self, keys: int | float) -> int | float:
        """Returns the FLOPs of one token that every backward pass recomputes: attention scores."""
        return 2 * self.query_width * keys

    def cache_entries(self) -> int:
        """Returns how many numbers the KV cache of one step holds for one token."""
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
