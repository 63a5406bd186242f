"""A language model in Python: settings, parameters and tokenizer as one object.

    import recursia

    model = recursia.load("runs/novels")
    model("It was a").depth_used
    model.generate("It was a", num_tokens=20)

What a caller can do wrong raises an error of `recursia.errors`, with a message of one line.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from recursia import model as forward
from recursia import params as parameters
from recursia import prediction, scores, settings
from recursia.architecture import Model
from recursia.data import source
from recursia.data.tokenizer import Tokenizer
from recursia.errors import ConfigError, DataError
from recursia.evaluate import split
from recursia.evaluate.shapes import Place, allowed
from recursia.generate import decode, prompts
from recursia.generate.continuation import Continuation, Stops, draw
from recursia.generate.sampling import Sampling
from recursia.prediction import Prediction
from recursia.ranges import LARGEST_SEED

Texts = str | Sequence[str]
Tokens = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | jax.Array
How = Literal["eval", "causal"]
_MOST_ROWS = 8  # that are scored at a time


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A model with its parameters and tokenizer, laid over this machine's devices.

    Attributes:
      name: what it was loaded from.
      config: settings of the model.
      params: float32 parameters, a tree of arrays.
      tokenizer: of its text; None for a preset whose tokenizer comes with its data.
      run: settings of its training.
      mesh: the devices.

    Example:
      >>> import recursia
      >>> model = recursia.preset("looped:tiny")
      >>> model("It was a").logits.shape
      (1, 8, 257)
      >>> model.at_depth(2).num_recursions
      2
    """

    name: str
    config: Model
    params: forward.Params
    tokenizer: Tokenizer | None
    run: settings.Run
    mesh: Mesh

    @property
    def num_params(self) -> int:
        """Number of unique parameters."""
        return parameters.count(forward.specs(self.config))

    @property
    def num_recursions(self) -> int:
        """Most recursions of a token."""
        return self.config.schedule.num_recursions

    @property
    def context_length(self) -> int:
        """Tokens that the model is given at most: as many as in training."""
        return self.run.train.seq_len

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}: {self.num_params:,} parameters, up to "
            f"{self.num_recursions} recursions, {self.context_length} tokens of context)"
        )

    def __call__(self, text: Texts | Tokens, *, mode: How = "eval") -> Prediction:
        """Returns logits, states and routing of each token of a batch of texts.

        A new length of texts, rounded up, is compiled once.

        Args:
          text: one or several texts; or token ids, [T] or [B T], or a list of such lists.
          mode: "eval" routes as published, "causal" as decoding must: each token without later
            ones.

        Raises:
          ConfigError, DataError: for no text, too long a text, tokens that the model does not have,
            or text for a model without a tokenizer.
        """
        return prediction.predict(self.params, self.config, self._ids(text), self._place(mode))

    def lens(self, text: Texts | Tokens, *, mode: How = "eval") -> Float[np.ndarray, "R B T V"]:
        """Returns logits after each recursion, as if it were the last (logit lens).

        Args:
          text: see `__call__`.
          mode: see `__call__`.

        Raises:
          ConfigError, DataError: as `__call__` does; or if sharing "sequence" walks block by block.
        """
        return prediction.lens(self.params, self.config, self._ids(text), self._place(mode))

    def score(self, text: Texts, *, mode: How = "eval") -> scores.Score:
        """Returns nats per token, bits per byte and recursions per token, as `recursia eval` does.

        Args:
          text: one or several documents of any length, each followed by the end of text.
          mode: see `__call__`.

        Raises:
          ConfigError, DataError: for no text, or a model without a tokenizer.
        """
        texts, tokenizer = _texts(text), self._tokenizer()
        if not any(counts := [len(tokenizer.encode(each)) for each in texts]):
            raise DataError("text: has 0 tokens; give at least 1")
        count = sum(counts) + len(counts) - 1
        length = allowed(self.config, count, self.context_length)
        rows = min(-(-count // length), _MOST_ROWS)
        size = {"batch_size": -(-rows // self.mesh.size) * self.mesh.size, "num_microbatches": 1}
        train = dataclasses.replace(self.run.train, seq_len=length, **size)
        place = self._place(mode)
        with tempfile.TemporaryDirectory() as folder:
            documents = (source.in_memory(each) for each in texts)
            paths = (split.of_documents(documents, tokenizer, folder),)
            run = dataclasses.replace(self.run, train=train)
            return scores.score(
                self.params,
                self.config,
                scores.validation_batches(run, paths, 0, self.mesh),
                tokenizer.token_bytes(),
                mode=place.mode,
                mesh=self.mesh,
                rules=place.rules,
            )

    def generate(self, prompt: str, num_tokens: int = 128, **how: Any) -> str:
        """Returns how the text goes on after a prompt; the arguments are those of `stream`."""
        return "".join(self.stream(prompt, num_tokens, **how))

    def stream(
        self,
        prompt: str,
        num_tokens: int = 128,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
    ) -> Iterator[str]:
        """Yields the text after a prompt as it is drawn, until the text ends.

        Args:
          prompt: at least one token, and at most as many as the context holds.
          num_tokens: to draw at most.
          temperature: of the draws; 0 takes the likeliest token.
          top_k: draws from so many of the likeliest tokens; 0 from all.
          top_p: draws from the likeliest tokens that add up to this probability; 1 from all.
          min_p: draws from tokens at least this fraction as likely as the likeliest; 0 from all.
          stop: texts, the first of which ends it and is not yielded.
          seed: of the draws, which are those of `recursia generate`.

        Raises:
          ConfigError, DataError: for an empty or too long prompt, a number out of range, or a model
            without a tokenizer.
        """
        if not isinstance(prompt, str):
            raise DataError(f"prompt: got {type(prompt).__name__}, takes a text")
        (ids,), tokenizer = self._ids(prompt), self._tokenizer()
        stops = Stops(tuple(_texts(stop)) if stop else ())
        if "" in stops.texts:
            raise ConfigError("stop: has an empty text, which would end every text; leave it out")
        check_whole("num_tokens", num_tokens, 1)
        check_whole("seed", seed, 0, LARGEST_SEED)
        try:
            sampling = Sampling(temperature, top_k, top_p, min_p)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"generate: {error}") from None
        key = prompts.key(seed, ids)
        return self._drawn(Continuation(tokenizer, ids, stops, num_tokens), sampling, key)

    def at_depth(self, num_recursions: int) -> "LanguageModel":
        """Returns the model with another number of recursions, and the same parameters.

        Raises:
          ConfigError: for a depth that it has no weights for.
        """
        check_whole("depth", num_recursions, 1)
        try:
            ours, params = forward.at_depth(self.config, self.params, num_recursions)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return dataclasses.replace(self, config=ours, params=params)

    def _drawn(self, text: Continuation, sampling: Sampling, key: jax.Array) -> Iterator[str]:
        """Yields the text of a continuation that has not begun, as it becomes certain."""
        decoder = decode.of(self.params, self.config, sampling)
        end = self._tokenizer().end_of_text
        how = {"window": self.context_length, "end_of_text": end}
        for _, new in prompts.in_order([text], draw(decoder, [text], key[None], **how)):
            if new:
                yield new

    def _place(self, mode: How) -> Place:
        if mode not in ("eval", "causal"):
            raise ConfigError(f"mode: got {mode!r}, takes 'eval' or 'causal'")
        return Place(mode, self.mesh, self.run.mesh.rules, self.context_length, 0)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError(
                f"{self.name}: its tokenizer comes with its data; give token ids, or a tokenizer "
                "to recursia.preset"
            )
        return self.tokenizer

    def _ids(self, text: Texts | Tokens) -> list[list[int]]:
        """Returns the ids of one or several texts, each of which the model can read."""
        if isinstance(text, str):
            text = [text]
        is_text = isinstance(text, list | tuple) and any(isinstance(each, str) for each in text)
        texts = _texts(text) if is_text else ()
        rows = [self._tokenizer().encode(each) for each in texts] or _integers(text)
        if not rows:
            raise DataError("text: there is none; give at least one")
        for number, row in enumerate(rows, 1):
            if not 0 < len(row) <= self.context_length:
                raise DataError(
                    f"text {number} of {len(rows)}: has {len(row)} tokens, takes 1 to the "
                    f"{self.context_length} of the context"
                )
            if not 0 <= min(row) <= max(row) < self.config.vocab_size:
                raise DataError(
                    f"text {number} of {len(rows)}: has tokens from {min(row)} to {max(row)}, "
                    f"takes 0 to {self.config.vocab_size - 1}"
                )
        return rows


def _texts(text: Any) -> list[str]:
    """Returns one or several texts as a list."""
    found = (
        [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    )
    if not found or not all(isinstance(each, str) for each in found):
        raise DataError(f"text: got {type(text).__name__}, takes a text or a list of texts")
    return list(found)


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuses what is no integer of a range."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not least <= value <= (value if most is None else most):
        to = "" if most is None else f" to {most}"
        raise ConfigError(f"{name}: got {value!r}, takes an integer from {least}{to}")


def _integers(tokens: Any) -> list[list[int]]:
    """Returns token ids, [T], [B T] or a list of lists, as lists."""
    wrong = DataError("text: is neither text nor token ids, [T] or [B T]; give one of them")
    try:
        rows = [np.asarray(tokens)]
        if rows[0].ndim == 2:
            rows = list(rows[0])
    except ValueError:  # lists of unequal lengths
        rows = [np.asarray(row) for row in tokens]
    if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
        raise wrong
    return [row.tolist() for row in rows]
