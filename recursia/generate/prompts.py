"""Prompts that a trained run continues, as a batch."""

import dataclasses
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import console, model
from recursia.errors import ConfigError
from recursia.generate import decode
from recursia.generate.continuation import Continuation, Stops, draw
from recursia.generate.sampling import Sampling
from recursia.workdir import trained as runs
from recursia.workdir.trained import Trained

AT_ONCE = 32  # texts of a batch


@dataclasses.dataclass(frozen=True)
class Way:
    """How prompts are continued.

    Attributes:
      num_tokens: to draw at most.
      num_samples: continuations of each prompt.
      sampling: of a token from its distribution.
      stops: that end a continuation.
      seed: of the draws.
    """

    num_tokens: int
    num_samples: int
    sampling: Sampling
    stops: Stops
    seed: int


def load(
    workdir: pathlib.Path, step: int | None, depth: int | None, overrides: Mapping[str, str]
) -> Trained:
    """Returns a trained model.

    Args:
      workdir: the run's directory, or a checkpoint from elsewhere.
      step: of the checkpoint; None takes the latest.
      depth: recursions; None takes those of training.
      overrides: fields of the depth policy to change, as typed.

    Raises:
      ConfigError: for a depth that the model has no weights for.
    """
    with console.doing(f"loading {workdir}"):
        trained = runs.load(workdir, step, overrides)
        if depth is None:
            return trained
        try:
            config, params = model.at_depth(trained.model, trained.params, depth)
        except ValueError as error:
            raise ConfigError(f"--depth: {error}") from None
    return dataclasses.replace(trained, model=config, params=params)


def begin(trained: Trained, prompts: Sequence[str], way: Way) -> list[Continuation]:
    """Returns the samples of each prompt, before their first token.

    Raises:
      ConfigError: for a prompt without a token, or with more than the context takes.
    """
    window, begun = trained.run.train.seq_len, []
    for number, prompt in enumerate(prompts, 1):
        ids = trained.tokenizer.encode(prompt)
        which = f"--prompt: number {number} of {len(prompts)}" if prompts[1:] else "--prompt:"
        if not 0 < len(ids) <= window:
            raise ConfigError(
                f"{which} has {len(ids)} tokens, takes 1 to {window} (train.seq_len, the context "
                f"of the model); {'shorten it' if ids else 'give text'}"
            )
        one = lambda ids=ids: Continuation(trained.tokenizer, ids, way.stops, way.num_tokens)
        begun += [one() for _ in range(way.num_samples)]
    return begun


def drawn(trained: Trained, texts: Sequence[Continuation], way: Way) -> Iterator[None]:
    """Draws the tokens of texts, several texts at once; yields after each token.

    What a text gets does not depend on the others: the key of a draw depends on the seed, the
    prompt, which sample of it the text is, and the token's place.

    Args:
      trained: the model.
      texts: of `begin`.
      way: with which they were begun.
    """
    decoder = decode.of(trained.params, trained.model, way.sampling)
    keys = [key(way.seed, text.prompt, at % way.num_samples) for at, text in enumerate(texts)]
    for first in range(0, len(texts), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        yield from draw(
            decoder,
            texts[some],
            jnp.stack(keys[some]),
            window=trained.run.train.seq_len,
            end_of_text=trained.tokenizer.end_of_text,
        )


def key(seed: int, prompt: Sequence[int], sample: int = 0) -> Array:
    """Returns the key of the draws of a sample of a prompt, whatever the other prompts.

    Two prompts have two keys: with one, a model that hardly heeds its context says the same twice.
    """
    digest = zlib.crc32(np.array(prompt, np.int32).tobytes())
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), sample)


def in_order(texts: Sequence[Continuation], steps: Iterator[None]) -> Iterator[tuple[int, str]]:
    """Yields (index, new text) while texts are drawn together, one text after the other.

    Args:
      texts: under way.
      steps: draws their tokens.
    """
    at, shown = 0, 0
    for _ in steps:
        while at < len(texts):
            yield at, texts[at].text[shown:]
            shown = len(texts[at].text)
            if not texts[at].is_over:
                break
            at, shown = at + 1, 0
