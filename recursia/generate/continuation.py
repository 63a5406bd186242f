"""The text after a prompt while its tokens are drawn: where it stops, what of it is certain."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from jaxtyping import Array

from recursia.data.tokenizer import Tokenizer
from recursia.data.vocabulary import Spelling
from recursia.generate import decode
from recursia.generate.decoder import Decoder
from recursia.generate.recompute import Rereader

FinishReason = Literal["stop", "end_of_text", "length"]


@dataclasses.dataclass(frozen=True)
class Stops:
    """Texts, the first of which ends a continuation and is no part of it.

    Attributes:
      texts: in any order; none is empty.
    """

    texts: tuple[str, ...] = ()

    def start(self, text: str) -> int | None:
        """Returns where the first of them starts in a text, or None."""
        return min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=None)

    def certain(self, text: str) -> int:
        """Returns how many characters lie before any that may begin one with those to come."""
        longest = max(map(len, self.texts), default=1)
        for at in range(max(len(text) - longest + 1, 0), len(text)):
            if any(stop.startswith(text[at:]) for stop in self.texts):
                return at
        return len(text)

    def cut(self, text: str) -> str:
        """Returns a whole text up to the first of them."""
        return text[: self.start(text)]


class Continuation:
    """The text after a prompt.

    `text` is always the beginning of what it will be at the end: that is the text of all tokens, up
    to the first stop, whatever the borders of tokens.

    Attributes:
      prompt: ids, at least one.
      tokens: that were drawn, those of a stop included.
      text: what is certain of it.
      finish_reason: why it ended; None while it goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Stops, num_tokens: int
    ) -> None:
        """Begins after a prompt.

        Args:
          tokenizer: of the text.
          prompt: ids, at least one.
          stops: that end it.
          num_tokens: to draw at most.
        """
        self.prompt, self.tokens, self.text = tuple(prompt), list[int](), ""
        self.finish_reason: FinishReason | None = None
        self.num_tokens = num_tokens
        self._stops, self._spelling, self._held = stops, Spelling(tokenizer, prompt), ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None

    def take(self, token: int | None) -> None:
        """Takes the next token; None is the end of text."""
        if token is not None:
            self.tokens.append(token)
            self._held += self._spelling.add([token])
        is_last = token is None or len(self.tokens) == self.num_tokens
        if is_last:
            self._held += self._spelling.rest()
        certain = len(self._held) if is_last else self._stops.certain(self._held)
        start = self._stops.start(self._held)
        if start is not None and start <= certain:
            certain, self.finish_reason = start, "stop"
        elif is_last:
            self.finish_reason = "end_of_text" if token is None else "length"
        self.text, self._held = self.text + self._held[:certain], self._held[certain:]


def draw(
    decoder: Decoder | Rereader,
    texts: Sequence[Continuation],
    keys: Array,
    *,
    window: int,
    end_of_text: int,
) -> Iterator[None]:
    """Draws tokens of a batch of texts until all are over; yields after each.

    Args:
      decoder: the model.
      texts: none of which has begun.
      keys: of the draws, one for each text.
      window: tokens that the model's context holds.
      end_of_text: the id that ends a text.
    """
    steps = decode.stream(
        decoder,
        [text.prompt for text in texts],
        keys,
        num_tokens=max(text.num_tokens for text in texts),
        window=window,
        end_of_text=end_of_text,
        is_over=lambda row: texts[row].is_over,
    )
    for tokens in steps:
        for text, token in zip(texts, tokens, strict=True):
            if not text.is_over:
                text.take(token)
        yield
    for text in texts:
        if not text.is_over:
            text.take(None)
    yield
