"""Continuing texts: with a KV cache, or by reading the whole text again for every token.

A text that fills the model's context goes on from its last half, which is read anew.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from recursia import cache, model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.generate import recompute
from recursia.generate.decoder import Decoder, compiled, rounded
from recursia.generate.recompute import Rereader
from recursia.generate.sampling import Sampling


def generate(
    params: Any,
    config: Model,
    prompt: list[int],
    *,
    num_tokens: int,
    window: int,
    sampling: Sampling,
    end_of_text: int,
    key: Array,
) -> list[int]:
    """Returns a continuation of a prompt.

    Args:
      params: float32 parameters.
      config: the model.
      prompt: ids, at least one.
      num_tokens: how many to draw at most.
      window: tokens that the model's context holds.
      sampling: of a token from its distribution.
      end_of_text: the id that ends the text; it is not returned.
      key: of the draws; a token's draw depends on its place.

    Raises:
      ValueError: for an empty prompt.
    """
    rows = stream(
        of(params, config, sampling),
        [prompt],
        key[None],
        num_tokens=num_tokens,
        window=window,
        end_of_text=end_of_text,
    )
    return [token for (token,) in rows if token is not None]


def of(
    params: Any, config: Model, sampling: Sampling, rows: NamedSharding | None = None
) -> Decoder | Rereader:
    """Returns the model as it decodes: with a KV cache, where one can stand for earlier tokens."""
    kind = Decoder if config.is_incremental else Rereader
    return kind(params, config, sampling, rows)


def stream(
    decoder: Decoder | Rereader,
    prompts: Sequence[Sequence[int]],
    keys: Array,
    *,
    num_tokens: int,
    window: int,
    end_of_text: int,
    is_over: Callable[[int], bool] = lambda row: False,
) -> Iterator[list[int | None]]:
    """Yields the next token of each text, until all have ended; None for one that has.

    Args:
      decoder: the model.
      prompts: ids, at least one each; of a prompt longer than the context its end is read.
      keys: of the draws, one for each prompt.
      num_tokens: how many to draw at most.
      window: tokens that the model's context holds.
      end_of_text: the id that ends a text; it is not yielded.
      is_over: asked of each text after its token was yielded, whether it ends there.

    Raises:
      ValueError: for an empty prompt.
    """
    room = min(window, max(map(len, prompts)) + num_tokens)
    room = min(window, rounded(room))
    texts = [list(prompt) for prompt in prompts]
    starts = [max(len(text) - window, 0) for text in texts]  # of what each row's context holds
    ended = np.zeros(len(texts), bool)
    state: Any = decoder.start(_contexts(texts, starts), keys, room)
    for count in range(1, num_tokens + 1):
        drawn = jax.device_get(state.token).tolist()
        ended |= np.array([token == end_of_text for token in drawn])
        if ended.all():
            return
        for text, token, has_ended in zip(texts, drawn, ended, strict=True):
            text.extend([] if has_ended else [token])
        yield [None if ended[row] else token for row, token in enumerate(drawn)]
        ended |= np.array([is_over(row) for row in range(len(texts))])
        if count == num_tokens or ended.all():
            return
        state.is_open = ~ended
        full = [row for row in np.flatnonzero(~ended) if state.position[row] >= room]
        for row in full:
            starts[row] = len(texts[row]) - max(window // 2, 1)
        if full:
            for row in np.flatnonzero(ended):
                starts[row] = len(texts[row]) - 1  # nothing more is read of it
            state = decoder.start(_contexts(texts, starts), keys, room)
        else:
            state = decoder.step(state)


def _contexts(texts: list[list[int]], starts: list[int]) -> list[list[int]]:
    return [text[start:] for text, start in zip(texts, starts, strict=True)]


def lower(config: Model, length: int, device: Any) -> jax.stages.Lowered:
    """Returns the drawing of one token after all others of a text, lowered for a device.

    Args:
      config: the model.
      length: tokens of the text.
      device: which need not be here.
    """
    if not config.is_incremental:
        return recompute.lower(config, length, device)
    where = jax.sharding.SingleDeviceSharding(device)
    weights = parameters.abstract(model.specs(config))
    arguments = (
        jax.eval_shape(lambda params: cache.unstack(params, config), weights),
        jax.ShapeDtypeStruct((1,), "i4"),
        jax.eval_shape(lambda: cache.empty(config, 1, length)),
        jax.ShapeDtypeStruct((1,), "i4"),
        jax.ShapeDtypeStruct((1,), "bool"),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
    )
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return compiled(config, Sampling()).step.lower(*jax.tree.map(place, arguments))
