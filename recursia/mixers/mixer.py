"""The base of mixers: whose keys and values a step reads, in one place."""

import abc
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float

from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.balance import Usage
from recursia.layers.branch import Branch, Report
from recursia.layers.experts import Choice
from recursia.params import Leaf

Params = dict[str, Leaf]  # one entry of each slot's bank


class Queries(NamedTuple):
    """What tokens ask.

    Attributes:
      heads: queries [B T N H], as `attend` takes them.
      relative: what they add to scores by distance [B T N R]; None adds nothing.
      choice: the experts that project them; None where there are none.
      usage: of those experts.
    """

    heads: Leaf
    relative: Leaf | None = None
    choice: Choice | None = None
    usage: Usage | None = None


class Mixer(Branch):
    """What lets tokens see each other; `Branch` says what reports may hold.

    Attributes:
      key_weights: (slot, name) of weights that only make keys and values: a step that reads those
        of another step leaves them out.
      score_scale: of the scores; None is one over the root of a head's width.
      score_cap: bound of the scores, by the hyperbolic tangent; 0 has none.
    """

    norm_name = "attention"
    score_scale: float | None = None
    score_cap: float = 0.0
    key_weights: ClassVar[tuple[tuple[str, str], ...]]

    @property
    @abc.abstractmethod
    def query_width(self) -> int:
        """Numbers in all queries of a token."""

    @property
    @abc.abstractmethod
    def key_width(self) -> int:
        """Numbers in all keys of a token; its values have as many."""

    @abc.abstractmethod
    def queries(self, params: Params, h: Float[Array, "B T D"], context: Context) -> Queries:
        """Returns the queries of normalised states."""

    @abc.abstractmethod
    def keys_values(
        self, params: Params, x: Float[Array, "B T D"], h: Float[Array, "B T D"], context: Context
    ) -> tuple[KeysValues, Usage | None]:
        """Returns keys and values, of states `x` that `h` normalises, and the use of experts."""

    @abc.abstractmethod
    def outputs(
        self,
        params: Params,
        mixed: Float[Array, "B T N H"],
        h: Float[Array, "B T D"],
        queries: Queries,
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Usage | None]:
        """Returns what heads write to the stream, and the use of experts."""

    def report(self, made: Usage | None, written: Usage | None) -> Report:
        """Returns what the experts of values (None where none were made) and outputs report."""
        return {}

    def apply(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
        source: tuple[KeysValues, Context] | None = None,
        memory: tuple[Float[Array, "B T D"], Float[Array, "B T D"]] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues | None, Report]:
        """Returns what tokens take from those they see, the keys and values made, and a report.

        Args:
          params: by slot, in the compute dtype; those of `exact` in float32.
          x: states whose content is passed on, as values.
          h: states that decide, as queries, keys and routers; most arrangements give `x` again.
          context: where the tokens stand.
          source: keys and values to read instead of making them, with their tokens' context.
          memory: `x` and `h` of the same tokens to make keys and values from, instead.
        """
        queries = self.queries(params, h, context)
        made, value_usage = None, None
        if source is None:
            made, value_usage = self.keys_values(params, *(memory or (x, h)), context)
            source = made, context
        how = queries.relative, self.score_scale, self.score_cap
        mixed = attend(queries.heads, source[0], context, source[1], *how)
        y, usage = self.outputs(params, mixed, h, queries, context)
        return y, made, self.report(value_usage, usage)

    @abc.abstractmethod
    def forward_flops(self, width: int, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          width: of the residual stream.
          keys: number of keys that a query meets, masked ones included.
          is_reading: whether the keys and values are another step's, and not made here.
        """

    def recomputed_flops(self, keys: int | float) -> int | float:
        """Returns the FLOPs of one token that any backward pass computes again: the scores."""
        return 2 * self.query_width * keys

    def cache_entries(self) -> int:
        """Returns how many numbers one step keeps for one token: its keys and its values."""
        return 2 * self.key_width
