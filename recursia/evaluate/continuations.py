"""How a model continues many prompts: the one place where evaluation decodes.

The whole text is computed again for every token, in causal mode, as each token then decides alone
how deep it goes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia import model, sharding
from recursia.architecture import Model
from recursia.evaluate.shapes import Place, padded

IsDone = Callable[[int, list[int]], bool]


@dataclasses.dataclass(frozen=True)
class Way:
    """How prompts are continued.

    Attributes:
      until: texts, the first of which ends a continuation and is no part of it.
      num_tokens: of a continuation, at most.
      temperature: of its draws; 0 takes the likeliest token.
    """

    until: tuple[str, ...]
    num_tokens: int
    temperature: float

    def cut(self, text: str) -> str:
        """Returns a text up to the first of its ends."""
        ends = (at for end in self.until if (at := text.find(end)) >= 0)
        return text[: min(ends, default=len(text))]


def continuations(
    params: Any,
    config: Model,
    prompts: Sequence[Sequence[int]],
    place: Place,
    *,
    num_tokens: int,
    temperature: float,
    end_of_text: int,
    seed: int,
    is_done: IsDone,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Returns the ids that follow each prompt.

    Args:
      params: float32 parameters.
      config: the model.
      prompts: ids, at least one each.
      place: where; its mode does not matter, and of a text that outgrows `context_length` the
        latest tokens are seen.
      num_tokens: to draw at most.
      temperature: of the draws; 0 takes the likeliest token.
      end_of_text: the id that ends a text; it is not returned.
      seed: of the draws, which depend on the prompt's place in the list and on the token's.
      is_done: told a prompt's place and what was drawn after it, whether that is enough.
      advance: is told how many prompts were finished since it was last told.
    """
    drawn: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    run = _next(config, place.mesh, place.rules, temperature > 0)
    size = place.rows_at_a_time(place.context_length, len(prompts)) if prompts else 1
    with jax.set_mesh(place.mesh):
        for first in range(0, len(order), size):
            going = order[first : first + size]
            while going:
                texts = [[*prompts[index], *drawn[index]] for index in going]
                arrays = _arrays(texts, going, drawn, size, place.context_length)
                ids = jax.device_get(run(params, place.put(arrays), seed, max(temperature, 1e-6)))
                for index, token in zip(tuple(going), ids.tolist(), strict=False):
                    if token != end_of_text:
                        drawn[index].append(token)
                    is_full = token == end_of_text or len(drawn[index]) >= num_tokens
                    if is_full or is_done(index, drawn[index]):
                        going.remove(index)
            advance(len(order[first : first + size]))
    return drawn


def _arrays(
    texts: Sequence[Sequence[int]],
    going: Sequence[int],
    drawn: Sequence[Sequence[int]],
    size: int,
    window: int,
) -> dict[str, np.ndarray]:
    """Returns the latest tokens of each text; rows that fill up the batch are padding."""
    longest = min(max(map(len, texts)), window)
    tokens = np.zeros((size, padded(longest, window)), np.int32)
    lengths, places = np.zeros(size, np.int32), np.zeros((size, 2), np.uint32)
    for at, text in enumerate(texts):
        seen = text[-window:]
        tokens[at, : len(seen)], lengths[at] = seen, len(seen)
        places[at] = going[at], len(drawn[going[at]])
    return {"tokens": tokens, "lengths": lengths, "places": places}


@functools.lru_cache(maxsize=8)
def _next(config: Model, mesh: Mesh, rules: sharding.Rules, is_random: bool):
    """Returns a compiled function from rows of text to the next token of each."""
    rows = NamedSharding(mesh, sharding.partition(("batch",), rules))

    def run(params: Any, batch: dict[str, Array], seed: int, temperature: float) -> Array:
        tokens, lengths = batch["tokens"], batch["lengths"]
        along, last = jnp.arange(tokens.shape[1]), jnp.maximum(lengths - 1, 0)
        segments = (along < lengths[:, None]).astype(jnp.int32)
        how: dict[str, Any] = {"mode": "causal", "wanted": along == last[:, None]}
        out = model.apply(params, tokens, config, segment_ids=segments, **how)
        hidden = jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)[:, 0]
        logits = model.logits(params, hidden, config)
        if not is_random:
            return jnp.argmax(logits, axis=-1)
        fold = lambda place: jax.random.fold_in(
            jax.random.fold_in(jax.random.key(seed), place[0]), place[1]
        )
        draw = lambda place, each: jax.random.categorical(fold(place), each / temperature)
        return jax.vmap(draw)(batch["places"], logits)

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(run, in_shardings=(None, rows, None, None), out_shardings=everywhere)
