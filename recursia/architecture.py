"""The settings of a model, and its schedule, which follows from them alone."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from recursia import combinations
from recursia import kv as keys_values
from recursia.blocks.block import Block
from recursia.depth.policy import Mode, Policy
from recursia.embeddings.embedding import Embedding
from recursia.embeddings.table import Table
from recursia.feedforward.feedforward import FeedForward
from recursia.injection import Injection
from recursia.layers.branch import Branch
from recursia.parallel import Parallel
from recursia.parameterisations.parameterisation import Parameterisation, Size
from recursia.parameterisations.standard import Standard
from recursia.params import Params
from recursia.ranges import MOST_LAYERS, at_least, between
from recursia.sharing import entries, key_banks, patterns
from recursia.sharing.schedule import KEYS, Entries, Schedule
from recursia.sharing.tied import Tied
from recursia.sharing.weights import Weights

LoopNorm = Literal["none", "each", "last"]
ENDS = ("prelude", "coda")  # stacks whose blocks share nothing


@dataclasses.dataclass(frozen=True)
class Model:
    """The model, as a point on the axes block, sharing, weights, depth, inject, kv, parallel.

    Attributes:
      num_layers: effective depth: block applications of a token that takes every recursion.
      block: applied in every step; `kind` names a module of `recursia.blocks`, and `mixer` and
        `feedforward` have kinds of their own. Their fields may be given as fields of the block.
      depth: how many recursions each token takes; `kind` names a module of `recursia.depth`.
      sharing: "none", "cycle", "sequence", "middle_cycle" or "middle_sequence".
      varies: per slot (attention, mlp, norms, router), where it differs from `sharing`: "block",
        "recursion", "recursion+block", "one", groups such as "block/2", or a table.
      prelude: unshared blocks before the core; None takes 1 for a "middle_" pattern, otherwise 0.
      coda: unshared blocks after the core; None as for `prelude`.
      end_sizes: sizes of the blocks of prelude and coda that are not those of the core's, such as
        `mlp_dim`. With another `embed_dim`, which is then that of embedding and head too, states
        are projected and normalised before the core and after it.
      end_feedforward: feed-forward of the blocks of prelude and coda, with sizes of its own; `kind`
        names a module of `recursia.feedforward`. None takes that of the block.
      weights: how a step's weights are made of shared ones; `kind` names a module of
        `recursia.sharing`.
      inject: the inputs injected again at each recursion.
      loop_norm: where the final norm is applied besides before the head: "none", after "each"
        recursion, or after the "last". After "each" and with no coda, it is not repeated.
      kv: sharing of keys and values across steps, and sliding windows.
      parallel: copies of the model side by side, whose states are averaged before the head.
      parameterisation: how scales follow from width and depth; `kind` names a module of
        `recursia.parameterisations`.
      embed: embedding and head; `kind` names a module of `recursia.embeddings`.
      vocab_size: rows of the embedding; 0 takes the tokenizer's.
      dtype: compute dtype; parameters and optimizer are float32.
    """

    num_layers: int
    block: Block
    depth: Policy
    sharing: patterns.Pattern = "none"
    varies: tuple[tuple[str, str | Entries], ...] = ()
    prelude: int | None = None
    coda: int | None = None
    end_sizes: tuple[tuple[str, int], ...] = ()
    end_feedforward: FeedForward | None = None
    weights: Weights = dataclasses.field(default_factory=Tied)
    inject: Injection = dataclasses.field(default_factory=Injection)
    loop_norm: LoopNorm = "none"
    kv: keys_values.Plan = dataclasses.field(default_factory=keys_values.Plan)
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    parameterisation: Parameterisation = dataclasses.field(default_factory=Standard)
    embed: Embedding = dataclasses.field(default_factory=Table)
    vocab_size: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        between(1, MOST_LAYERS, self, "num_layers")
        at_least(0, self, "vocab_size")
        between(0, MOST_LAYERS, self, *(end for end in ENDS if getattr(self, end) is not None))
        combinations.check(self)

    @functools.cached_property
    def ends(self) -> dict[str, int]:
        """Blocks of prelude and coda."""
        return dict(zip(ENDS, patterns.ends(self.sharing, self.prelude, self.coda), strict=True))

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The bank entries and keys that each step of the core uses."""
        plan, steps = self._plan, self.step_specs
        is_one = all(block == self.step_blocks[0] for block in self.step_blocks)
        return plan if is_one else dataclasses.replace(plan, shapes=entries.shapes(plan, steps))

    @functools.cached_property
    def _plan(self) -> Schedule:
        """The schedule but for the shapes of weights."""
        how = "recursion+block" if self.sharing == "none" else "block"
        slots: dict[str, patterns.Rule] = {
            **dict.fromkeys(self.block.slots, how),
            **dict.fromkeys(self.block.common, "one"),
            **dict.fromkeys(self.depth.slots, "recursion"),
            **dict.fromkeys(self.parallel.slots, "recursion+block"),
            **self.weights.varies(self.block_specs),
        }
        plan = patterns.schedule(
            self.num_layers,
            self.depth.groups,
            self.sharing,
            (self.ends["prelude"], self.ends["coda"]),
            slots,
            dict(self.varies),
        )
        return self.kv.added_to(plan)

    @functools.cached_property
    def block_specs(self) -> Params:
        """The specs of one block by slot; initial scales depend on the number of layers."""
        return self._specs(self.block)

    def _specs(self, block: Block) -> Params:
        return block.specs(self.num_layers) | self.parallel.prefix_specs(
            block.mixer, block.embed_dim
        )

    @functools.cached_property
    def step_blocks(self) -> tuple[Block, ...]:
        """The block of each step of the core, by its number: a part of `block`, or all of it."""
        plan, parts = self._plan, self.weights.parts(self._plan.num_steps)
        if not parts:
            return (self.block,) * plan.num_steps
        made = {part: self.block.narrowed(*part) for part in dict.fromkeys(parts)}
        return tuple(made[parts[place]] for place in np.argsort(plan.steps))

    @functools.cached_property
    def step_specs(self) -> tuple[Params, ...]:
        """The specs of the block of each step, by slot."""
        made = {self.block: self.block_specs}
        for block in set(self.step_blocks) - {self.block}:
            made[block] = self._specs(block)
        return tuple(made[block] for block in self.step_blocks)

    @functools.cached_property
    def step_weights(self) -> Weights:
        """The weight kind, with the specs of each step."""
        return self.weights.of(self.block_specs, self.step_specs if self.schedule.shapes else ())

    @functools.cached_property
    def end_block(self) -> Block:
        """The block of prelude and coda, as wide as the embedding."""
        block = self.block.sized(**dict(self.end_sizes)) if self.end_sizes else self.block
        own = self.end_feedforward
        return block if own in (None, block.feedforward) else block.with_feedforward(own)

    @property
    def branches(self) -> tuple[tuple[Branch, tuple[str, ...], str], ...]:
        """Each mixer and feed-forward, the stacks that have it, and a prefix of its metrics.

        A feed-forward of prelude and coda that is of other sizes alone is that of the core.
        """
        ends = tuple(name for name, count in self.ends.items() if count)
        own, every = self.end_feedforward, ("core", *ends)
        mixer = (self.block.mixer, every, "")
        if own in (None, self.block.feedforward):
            return mixer, (self.block.feedforward, every, "")
        return mixer, (self.block.feedforward, ("core",), ""), (own, ends, "end_")

    @functools.cached_property
    def end_specs(self) -> Params:
        """The specs of one block of prelude or coda by slot."""
        return self._specs(self.end_block)

    @property
    def is_resized(self) -> bool:
        """Whether the core has another width than embedding, prelude, coda and head."""
        return self.end_block.embed_dim != self.block.embed_dim

    @property
    def key_weights(self) -> key_banks.Names:
        """(slot, name) of weights that only make what steps read, those of weight kinds too."""
        return key_banks.names(self.schedule, self.block, self.weights)

    @property
    def is_incremental(self) -> bool:
        """Whether a KV cache can stand for the tokens before: decoding then reads each once."""
        parts = self.block.mixer, self.block.feedforward, self.depth, self.embed.attention
        parts += (self.end_feedforward,)
        return all(part is None or part.is_incremental for part in parts)

    @property
    def owes_keys(self) -> bool:
        """Whether a token that stops early lacks keys of later recursions that others may read."""
        later = range(1, self.schedule.num_recursions)
        return self.depth.shows_stopped and any(map(self.schedule.makes_keys, later))

    @functools.cached_property
    def size(self) -> Size:
        """The size over that of the base of the parameterisation."""
        return self.parameterisation.size(self.block.embed_dim, self.num_layers)

    def sized(self, vocab_size: int) -> "Model":
        """Returns the model with `vocab_size` rows in its embedding."""
        return dataclasses.replace(self, vocab_size=vocab_size)

    def at_depth(self, num_recursions: int) -> "Model":
        """Returns the model with `num_recursions` recursions of its core.

        Raises:
          ValueError: for a depth that some slot or the depth policy has no weights for.
        """
        plan = self.schedule.at_depth(num_recursions)
        self.inject.check_depth(self.schedule.num_recursions, num_recursions)
        depth = self.depth.at_depth(num_recursions)
        if plan == self.schedule:
            return self
        for slot in {slot + KEYS for slot, _ in self.key_weights}:
            if extra := set(plan.held(slot)) - set(self.schedule.held(slot)):
                raise ValueError(
                    f"depth {num_recursions}: other steps then make keys, and {slot} has no entry "
                    f"{min(extra)}; take {self.schedule.num_recursions}"
                )
        return dataclasses.replace(
            self,
            num_layers=sum(self.ends.values()) + plan.num_steps,
            depth=depth,
            varies=plan.entries,
            weights=self.weights.moved(self.schedule, plan),
            parameterisation=self.parameterisation.trained_at(self.num_layers),
            kv=dataclasses.replace(
                self.kv, kv_sharing=plan.keys or "own", window=plan.windows or 0
            ),
        )

    def in_phase(self, num_recursions: int | None, how: str | None) -> "Model":
        """Returns the model of a phase of training.

        Args:
          num_recursions: of its core; None leaves it as it is.
          how: how the block's slots vary, where they share less in this model; None leaves it.

        Raises:
          ValueError: for a depth with other parameters, or a plan that shares what this one does
            not share, and the reverse.
        """
        is_same = how is None and num_recursions in (None, self.schedule.num_recursions)
        if self.schedule.shapes and not is_same:
            raise ValueError(
                "weights: steps have different widths, and a phase with other entries has others; "
                "take a model of one width, or no phases"
            )
        tied = self if how is None else self._tied(how)
        if num_recursions in (None, self.schedule.num_recursions):
            return tied
        small, named = tied.at_depth(num_recursions), {slot for slot, _ in tied.schedule.entries}
        own = [s for s in sorted(named) if small.schedule.size(s) != tied.schedule.size(s)]
        own += ["inject.step"] if self.inject.step == "learned" else []
        if own:
            raise ValueError(
                f"depth {num_recursions} lacks weights of later recursions ({', '.join(own)}), and "
                "a model grows with the same parameters; share them across recursions"
            )
        return small

    def _tied(self, how: str) -> "Model":
        plan, slots = self.schedule, dict(self.varies)
        for slot in self.block.slots:
            own = plan.by_recursion(slot)
            if own.ndim > 2:  # its steps take several entries at once, as the weight kind says
                continue
            wide = patterns.table(plan.num_recursions, plan.num_blocks, slot, how)
            pairs = set(zip(own.reshape(-1).tolist(), np.reshape(wide, -1).tolist(), strict=True))
            if len(pairs) == plan.size(slot):  # each entry is within one of the wider ones
                slots[slot] = wide
            elif len(pairs) != 1 + np.max(wide):
                raise ValueError(
                    f"{how!r} unties weights of {slot} that the model ties, and ties others; a "
                    "phase may only tie more than the model"
                )
        return dataclasses.replace(self, varies=tuple(slots.items()))

    def at_step(self, step: int) -> "Model":
        """Returns the model of a training step; each distinct model is compiled once."""
        return dataclasses.replace(self, depth=self.depth.at_step(step))

    def is_causal(self, mode: Mode) -> bool:
        """Returns whether the logits of a token do not depend on later tokens in this mode."""
        return self.depth.is_causal(mode)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes in which the model is scored: as published, and as in decoding if that differs."""
        is_one = self.is_causal("eval") and not self.schedule.is_cyclic
        return ("eval",) if is_one else ("eval", "causal")
