"""The base of blocks: a mixer and a feed-forward in a residual arrangement with norms."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import norm as norms
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.past import Made, Source
from recursia.mixers.mixer import Mixer
from recursia.params import Leaf, Params

Stream = Float[Array, "..."]  # states [*B D], and what is handed on behind them
Norm = Callable[[Array, str], Array]  # of states, by the norm of that name


@dataclasses.dataclass(frozen=True)
class Block(abc.ABC):
    """One step of depth: a mixer and then a feed-forward write to the residual stream.

    An arrangement says what each branch reads (`before`) and how its output joins the stream
    (`after`). A report holds both branches, by slot; statistics over the batch follow the rule of
    `recursia.layers.branch.Branch`.

    Attributes:
      embed_dim: width of the residual stream.
      mixer: attention; `kind` names a module of `recursia.mixers`.
      feedforward: position-wise layer; `kind` names a module of `recursia.feedforward`.
      norm: "rms" (Zhang & Sennrich 2019, arXiv 1910.07467), "layer" (Ba et al. 2016, arXiv
        1607.06450), "unbiased_layer": "layer" without a bias, or "unscaled": "rms" without weights.
      norm_eps: added to the mean square or the variance that a norm divides by.
    """

    embed_dim: int
    mixer: Mixer
    feedforward: FeedForward
    norm: norms.Kind = "rms"
    norm_eps: float = 1e-5

    is_additive: ClassVar[bool] = True  # whether the stream gains a branch's output as it is
    carrier: ClassVar[FeedForward | None] = None  # for which tokens hand numbers on, if another's

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim")
        ranges.at_least(0, self, "norm_eps")
        object.__setattr__(self, "mixer", self.mixer.beside(self.feedforward))

    def narrowed(self, heads: float, hidden: float, multiple: int) -> "Block":
        """Returns a part of the block; see `narrowed` of mixers and feed-forwards.

        Raises:
          ValueError: if a layer of this kind has no such part.
        """
        parts = self.mixer.narrowed(heads), self.feedforward.narrowed(hidden, multiple)
        if parts == (self.mixer, self.feedforward):
            return self
        return dataclasses.replace(self, mixer=parts[0], feedforward=parts[1])

    def with_feedforward(self, feedforward: FeedForward) -> "Block":
        """Returns the block with another feed-forward, to stand among blocks that have this one.

        One that hands nothing on lets tokens hand on what this one's next step reads.

        Raises:
          ValueError: if the mixer uses slots that the other does not have.
        """
        made = dataclasses.replace(self, feedforward=feedforward)
        if not made.carried_dim:
            vars(made).update(carrier=self.feedforward)
        return made

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the trees of weights that can be shared across depth each by itself."""
        return ("norms", *self.mixer.slots, *self.feedforward.slots)

    @property
    def exact(self) -> tuple[str, ...]:
        """Slots whose weights stay float32 whatever the compute dtype."""
        return (*self.mixer.exact, *self.feedforward.exact)

    @property
    def common(self) -> tuple[str, ...]:
        """Slots of which all steps of the core use one entry, whatever they share else."""
        return (*self.mixer.common, *self.feedforward.common)

    @property
    def key_weights(self) -> tuple[tuple[str, str], ...]:
        """(slot, name) of weights that only make keys and values."""
        return self.mixer.key_weights

    @property
    def score_weights(self) -> tuple[tuple[str, str], ...]:
        """(slot, name) of weights that only make queries and keys; see `Mixer.score_weights`."""
        return self.mixer.score_weights

    @property
    def query_shape(self) -> tuple[int, int]:
        """Query heads of each key head, and their width."""
        return self.mixer.query_width // self.mixer.key_width, self.mixer.head_dim

    @property
    def carried_dim(self) -> int:
        """Numbers that a token hands on from step to step beside its states."""
        return (self.carrier or self.feedforward).carried_dim(self.embed_dim)

    @property
    def stream_dim(self) -> int:
        """Width of the residual stream and of what a token hands on beside it."""
        return self.embed_dim + self.carried_dim

    def states(self, stream: Stream) -> Stream:
        """Returns the residual stream alone, without what is handed on beside it."""
        return stream[..., : self.embed_dim] if self.carried_dim else stream

    def renewed(self, stream: Stream, states: Stream) -> Stream:
        """Returns other states, with what is handed on beside those of `stream`."""
        if not self.carried_dim:
            return states
        return jnp.concatenate([states, stream[..., self.embed_dim :]], axis=-1)

    def opened(self, states: Stream) -> Stream:
        """Returns the states that enter the first step, with nothing handed on: zeros."""
        if not self.carried_dim:
            return states
        return jnp.pad(states, [(0, 0)] * (states.ndim - 1) + [(0, self.carried_dim)])

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Names of the norms: one for each branch, unless an arrangement has more."""
        return (self.mixer.norm_name, self.feedforward.norm_name)

    def sized(self, **sizes: int) -> "Block":
        """Returns the block with other sizes of its own, of its mixer and of its feed-forward.

        Raises:
          ValueError: for a size that none of them has, or that one refuses.
        """
        if unknown := sizes.keys() - self.fields:
            raise ValueError(f"{min(unknown)}: the block has no such size")

        def changed(part: Any, **inner: Any) -> Any:
            own = {name: sizes[name] for name in sizes.keys() & _fields(part)}
            return dataclasses.replace(part, **inner, **own)

        inner = {"mixer": changed(self.mixer), "feedforward": changed(self.feedforward)}
        return changed(self, **inner)

    @property
    def fields(self) -> set[str]:
        """Names of the settings of the block, of its mixer and of its feed-forward."""
        return _fields(self) | _fields(self.mixer) | _fields(self.feedforward)

    def specs(self, num_steps: int) -> Params:
        """Returns a tree of specs for each slot.

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
        """Returns the specs of the norm before the head, or None if blocks end in a norm."""
        return norms.specs(self.norm, self.embed_dim)

    @abc.abstractmethod
    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns a branch's inputs `x` and `h`, as `apply` of mixers and feed-forwards has them.

        Args:
          x: the residual stream.
          name: of the branch's norm.
          norm: normalises states by the norm of a name.
        """

    @abc.abstractmethod
    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the residual stream after a branch with output `y`."""

    def joined(self, params: Params, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the residual stream after a branch, by an arrangement with weights of its own.

        Args:
          params: of the block.
          x: see `after`, as for the others.
          y: output of the branch.
          name: of the branch's norm.
          norm: normalises states by the norm of a name.
        """
        return self.after(x, y, name, norm)

    def between(self, x: Array, mixed: Array) -> Array:
        """Returns the stream that the feed-forward reads: `x` (before the mixer) or `mixed`."""
        return mixed

    def apply(
        self,
        params: Params,
        x: States,
        context: Context,
        source: Source | None = None,
        memory: States | None = None,
    ) -> tuple[States, Made | None, Report]:
        """Applies the block once.

        Args:
          params: one entry of each slot's bank, in the compute dtype; those of `exact` in float32.
          x: hidden states of the tokens in `context`, with what they hand on (`stream_dim`).
          context: positions, documents and padding of the tokens.
          source: keys and values to read instead of making them, with their tokens' context; or
            the KV cache of the step, to which those made here are added before it is read; or
            queries and keys to replay: see `Mixer.apply`.
          memory: other states of the same tokens, to make keys and values of.

        Returns:
          The new hidden states; the keys and values made, or the KV cache with them, or None if
          `source` was only read; and the report of both branches.
        """
        norm = lambda x, name: norms.normalise(x, params["norms"][name], self.norm_eps)
        name, x, stream = self.mixer.norm_name, self.states(x), x
        kv_inputs = None if memory is None else self.before(self.states(memory), name, norm)
        inputs = self.before(x, name, norm)
        y, keys_values, report = self.mixer.apply(params, *inputs, context, source, kv_inputs)
        y = _multiplied(y, context)
        mixed, name = self.joined(params, x, y, name, norm), self.feedforward.norm_name
        inputs = self.before(self.between(x, mixed), name, norm)
        before = stream[..., self.embed_dim :]
        y, carried, more = self.feedforward.step(params, *inputs, before, context)
        if self.carrier is not None:
            carried = self.carrier.handed_on(inputs[1], before)
        y = _multiplied(y, context)
        x = self.joined(params, mixed, y, name, norm)
        if self.carried_dim:
            x = jnp.concatenate([x, carried.astype(x.dtype)], axis=-1)
        return x, keys_values, {**report, **more}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns terms of the training loss in nats per token, and metrics.

        Args:
          reports: by slot, summed over the uses of each bank entry, prelude and coda included;
            entries are the leading axis.
        """
        losses, metrics = {}, {}
        for branch in (self.mixer, self.feedforward):
            if own := {slot: report for slot, report in reports.items() if slot in branch.slots}:
                branch_losses, branch_metrics = branch.losses(own)
                losses, metrics = losses | branch_losses, metrics | branch_metrics
        return losses, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the names of nonzero loss weights whose loss is no sum over tokens."""
        branches = (("mixer", self.mixer), ("feedforward", self.feedforward))
        return tuple(f"{name}.{field}" for name, b in branches for field in b.batch_losses())

    def forward_flops(self, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          keys: number of keys per query, masked ones included.
          is_reading: whether the step reads the keys and values of another step.
        """
        mixed = self.mixer.forward_flops(self.embed_dim, keys, is_reading)
        return mixed + self.feedforward.forward_flops(self.embed_dim)

    def recomputed_flops(self, keys: int | float) -> int | float:
        """Returns the FLOPs of one token that every backward pass recomputes."""
        return self.mixer.recomputed_flops(keys)

    def attention_flops(self, keys: int | float) -> int | float:
        """Returns the forward FLOPs of one token's products with keys and with values."""
        return self.mixer.attention_flops(self.embed_dim, keys)

    def score_flops(self) -> int:
        """Returns the forward FLOPs of one token that a step does without where it replays."""
        return self.mixer.score_flops(self.embed_dim)

    def cache_entries(self) -> int:
        """Returns how many numbers the KV cache of one step holds for one token."""
        return self.mixer.cache_entries(self.embed_dim)


def _fields(part: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(part)}


def _multiplied(y: Array, context: Context) -> Array:
    """Returns what a branch writes, times the multiplier of the context."""
    return y if context.multiplier is None else y * context.multiplier.astype(y.dtype)
