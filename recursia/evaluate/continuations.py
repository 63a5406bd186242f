"""How a model continues many prompts: the one place where evaluation decodes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from recursia import ranges, sharding
from recursia.architecture import Model
from recursia.data.tokenizer import Tokenizer
from recursia.evaluate.shapes import Place
from recursia.generate import decode
from recursia.generate.continuation import Continuation, Stops, draw
from recursia.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Way:
    """How prompts are continued.

    Attributes:
      stops: that end a continuation.
      num_tokens: of a continuation, at most.
      sampling: of its tokens.
    """

    stops: Stops
    num_tokens: int
    sampling: Sampling

    def __post_init__(self):
        ranges.at_least(1, self, "num_tokens")


def continuations(
    params: Any,
    config: Model,
    prompts: Sequence[Sequence[int]],
    place: Place,
    way: Way,
    *,
    tokenizer: Tokenizer,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Continuation]:
    """Returns what follows each prompt: it does not depend on which are read together.

    Args:
      params: float32 parameters.
      config: the model.
      prompts: ids, at least one each.
      place: where; its mode does not matter, and a text that fills `context_length` goes on from
        its last half.
      way: how.
      tokenizer: of the texts.
      seed: of the draws, which depend on the prompt's place in the list and on the token's.
      advance: is told how many prompts were finished since it was last told.
    """
    begin = lambda prompt, count: Continuation(tokenizer, prompt, way.stops, count)
    found = [begin(prompt, way.num_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = NamedSharding(place.mesh, sharding.partition(("batch",), place.rules))
    decoder = decode.of(params, config, way.sampling, rows)
    size = place.rows_at_a_time(place.context_length, len(prompts)) if prompts else 1
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    with jax.set_mesh(place.mesh):
        for first in range(0, len(order), size):
            members = order[first : first + size]
            padding = size - len(members)  # rows that end after a token
            texts = [found[index] for index in members]
            texts += [begin([0], 1) for _ in range(padding)]
            keys = fold(jax.random.key(seed), jnp.array([*members, *[0] * padding]))
            steps = draw(
                decoder,
                texts,
                keys,
                window=place.context_length,
                end_of_text=tokenizer.end_of_text,
            )
            done = 0
            for _ in steps:
                over = sum(found[index].is_over for index in members)
                advance(over - done)
                done = over
    return found
