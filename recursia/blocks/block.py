"""The base of blocks: two branches, of which an arrangement says where norms stand."""

import abc
import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import norm as norms
from recursia.layers.attention import Context, KeysValues
from recursia.layers.branch import Losses, Report
from recursia.layers.past import Past
from recursia.mixers.mixer import Mixer, Params
from recursia.params import Leaf

Norm = Callable[[Array, str], Array]  # a state normalised by the weights of that name


@dataclasses.dataclass(frozen=True)
class Block(abc.ABC):
    """What one step does: a mixer and then a feed-forward write to the residual stream.

    An arrangement says what a branch reads (`before`) and how its result joins (`after`). A report
    holds both branches, by slot; what `recursia.layers.branch.Branch` says of statistics over
    the batch holds for arrangements too.

    Attributes:
      embed_dim: width of the residual stream.
      mixer: what lets tokens see each other; `kind` names a module of `recursia.mixers`.
      feedforward: what a token does alone; `kind` names a module of `recursia.feedforward`.
      norm: "rms" (Zhang & Sennrich 2019, arXiv 1910.07467) or "layer" (Ba et al. 2016, arXiv
        1607.06450), or "unscaled": "rms" without weights.
      norm_eps: added to the mean square or the variance that a norm divides by.
    """

    embed_dim: int
    mixer: Mixer
    feedforward: FeedForward
    norm: norms.Kind = "rms"
    norm_eps: float = 1e-5

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim")
        ranges.at_least(0, self, "norm_eps")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the parts of a block that can be shared apart."""
        return ("norms", *self.mixer.slots, *self.feedforward.slots)

    @property
    def exact(self) -> tuple[str, ...]:
        """Slots whose weights stay float32 whatever the compute dtype."""
        return (*self.mixer.exact, *self.feedforward.exact)

    @property
    def key_weights(self) -> tuple[tuple[str, str], ...]:
        """(slot, name) of weights that only make keys and values."""
        return self.mixer.key_weights

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Names of the norms: one for each branch, unless the arrangement says otherwise."""
        return (self.mixer.norm_name, self.feedforward.norm_name)

    def specs(self, num_steps: int) -> dict[str, Leaf]:
        """Returns a tree of specs for each slot, of a model that applies it in `num_steps` steps.

        Args:
          num_steps: effective depth, on which initial scales may depend.
        """
        scale = norms.specs(self.norm, self.embed_dim)
        return {
            "norms": {name: scale for name in self.norm_names},
            **self.mixer.specs(self.embed_dim, num_steps),
            **self.feedforward.specs(self.embed_dim, num_steps),
        }

    def final_norm(self) -> Leaf:
        """Returns the specs of the norm before the head, or None where blocks end in their own."""
        return norms.specs(self.norm, self.embed_dim)

    @abc.abstractmethod
    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the states whose content a branch passes on, and those that decide.

        Args:
          x: the residual stream.
          name: of the branch's norm.
          norm: normalises states by the weights of a name.
        """

    @abc.abstractmethod
    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the residual stream with what a branch made, `y`; the others are `before`'s."""

    def between(self, x: Array, mixed: Array) -> Array:
        """Returns the stream that the feed-forward reads, of that before and after the mixer."""
        return mixed

    def apply(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        context: Context,
        source: tuple[KeysValues, Context] | Past | None = None,
        memory: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues | Past | None, Report]:
        """Applies the block once.

        Args:
          params: one entry of each slot's bank, in the compute dtype; those of `exact` in float32.
          x: hidden states of the tokens in `context`.
          context: where those tokens stand.
          source: keys and values to read instead of the block's own, with their tokens' context;
            or the step's cache, to which the block adds its own before it reads.
          memory: states of the same tokens to make keys and values from, instead of `x`.

        Returns:
          The new hidden states, the keys and values made (None if only `source` was read) or the
          cache with them, and what both branches report.
        """
        norm = lambda x, name: norms.normalise(x, params["norms"][name], self.norm_eps)
        name = self.mixer.norm_name
        seen = None if memory is None else self.before(memory, name, norm)
        read = self.before(x, name, norm)
        y, made, report = self.mixer.apply(params, *read, context, source, seen)
        mixed, name = self.after(x, y, name, norm), self.feedforward.norm_name
        read = self.before(self.between(x, mixed), name, norm)
        y, more = self.feedforward.apply(params, *read, context)
        return self.after(mixed, y, name, norm), made, {**report, **more}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns terms of the training loss in nats per token, and metrics.

        Args:
          reports: by slot, summed over the uses of each bank entry, entries in front; those of
            prelude and coda are included.
        """
        losses, metrics = {}, {}
        for part in (self.mixer, self.feedforward):
            if own := {slot: r for slot, r in reports.items() if slot in part.slots}:
                more, shown = part.losses(own)
                losses, metrics = {**losses, **more}, {**metrics, **shown}
        return losses, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the fields that weigh losses in force which are no sums over tokens."""
        parts = (("mixer", self.mixer), ("feedforward", self.feedforward))
        return tuple(f"{name}.{field}" for name, part in parts for field in part.batch_losses())

    def forward_flops(self, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          keys: number of keys that a query meets, masked ones included.
          is_reading: whether the keys and values are another step's, and not made here.
        """
        mixed = self.mixer.forward_flops(self.embed_dim, keys, is_reading)
        return mixed + self.feedforward.forward_flops(self.embed_dim)

    def recomputed_flops(self, keys: int | float) -> int | float:
        """Returns the FLOPs of one token that any backward pass computes again."""
        return self.mixer.recomputed_flops(keys)

    def cache_entries(self) -> int:
        """Returns how many numbers one step keeps for one token."""
        return self.mixer.cache_entries()
