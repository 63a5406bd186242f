"""One recursion of a stack of blocks, as a depth policy runs it on any subset of the tokens."""

import dataclasses
import functools

from flax import struct
from jaxtyping import Array, Bool, Float

from recursia.layers.attention import Context
from recursia.layers.branch import Report
from recursia.sharing import step_scan
from recursia.sharing.step_scan import Memory
from recursia.sharing.steps import CachedKeys, Span, Steps


@struct.dataclass
class RecursionOutput:
    """What a recursion gives besides its states.

    Attributes:
      cached: keys and values that later steps read.
      report: what its blocks report, by slot, stacked over blocks [K ...].
    """

    cached: tuple[CachedKeys, ...]
    report: Report


@dataclasses.dataclass(frozen=True)
class Recursion:
    """One recursion of a stack, for any subset of the tokens.

    Attributes:
      steps: all steps of the stack.
      span: those of this recursion.
      injected: the injected inputs that differ between recursions.
      cached: keys and values that earlier recursions made.
    """

    steps: Steps
    span: Span
    injected: dict[str, Array]
    cached: tuple[CachedKeys, ...]

    @property
    def is_source(self) -> bool:
        """Whether later recursions read keys and values that this one makes."""
        return self.steps.schedule.is_source(self._number)

    @property
    def _number(self) -> int:
        return self.span.start // self.steps.schedule.num_blocks

    def only(
        self, context: Context, going: Bool[Array, "B T"], active: Bool[Array, "B T"]
    ) -> Context:
        """Returns a context in which the results of tokens that stop here are discarded.

        Other tokens do not attend to them. In a recursion whose keys later ones read they attend to
        every active token.

        Args:
          context: of all tokens.
          going: the tokens whose results are used.
          active: the tokens that could go on; all except padding in the first recursion.
        """
        if self.is_source:
            return context if self.span.starts == (0,) else context.hide(~active)
        makes_keys = self.steps.schedule.makes_keys(self._number)
        return context.hide(~going) if makes_keys else context.count_only(going)

    def enter(self, x: Float[Array, "B T D"], context: Context) -> Float[Array, "B T D"]:
        """Returns the input of the first block: the states with what is injected."""
        return self.steps.inject(self.injected, x, context)

    def run(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B T D"], RecursionOutput]:
        """Applies every block once.

        Args:
          x: hidden states of any subset of the tokens, in order, as `enter` gave them.
          context: positions, documents and padding of those tokens.
          memory: from the hidden states before a block, the states that its keys and values are
            made of; None takes the hidden states themselves.

        Returns:
          The new hidden states, and the keys and report of the blocks.
        """
        apply = functools.partial(self._apply, context=context, memory=memory)
        if self.steps.remat.unit == "recursion":
            apply = self.steps.remat.wrap(apply)
        x, output = apply(x)
        return x if self.steps.norm is None else self.steps.norm(x), output

    def _apply(
        self, x: Array, context: Context, memory: Memory | None
    ) -> tuple[Array, RecursionOutput]:
        x, cached, report = step_scan.apply(
            self.steps, x, context, self.span, self.cached, memory=memory
        )
        return x, RecursionOutput(cached, report)
