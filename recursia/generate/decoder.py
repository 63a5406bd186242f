"""Decoding of a batch of texts with a KV cache: a prefill, then one token a step.

Rows may differ in length, and end one by one. What a row gets does not depend on the others.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from recursia import cache, model
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.generate.sampling import Sampling

BUCKET = 64  # tokens of the shortest padded prompt
CHUNK = 512  # tokens of a prompt that are read at once
GROWTH = 1.25  # of a routed step's cache that is full
SHORT = 512  # room of texts for which all grow to the end at once: each size is compiled anew


_unstack = jax.jit(cache.unstack, static_argnames="config")


@dataclasses.dataclass
class Texts:
    """A batch of texts under way.

    Attributes:
      token: the last token of each, which the model has not read.
      position: of that token.
      is_open: whether the text goes on.
      keys: of the draws of each.
      room: tokens that a text may have at most.
    """

    token: Int[Array, "B"]
    position: Int[np.ndarray, "B"]
    is_open: Bool[np.ndarray, "B"]
    keys: Array  # [B]
    room: int


@dataclasses.dataclass
class CachedTexts(Texts):
    """A batch of texts under way, with the KV cache of what the model has read.

    Attributes:
      cache: of the tokens before the last of each.
    """

    cache: Cache


class Decoder:
    """A model that continues texts."""

    def __init__(
        self,
        params: dict[str, Any],
        config: Model,
        sampling: Sampling,
        rows: NamedSharding | None = None,
    ):
        """Lays out the parameters for decoding.

        Args:
          params: float32 parameters.
          config: the model.
          sampling: of tokens.
          rows: how texts lie over devices, which divide their number; None: on each all of them.

        Raises:
          ValueError: if what the model does with a token depends on those beside it, so that no
            cache can stand for them (`Model.is_incremental`).
        """
        if not config.is_incremental:
            raise ValueError("decoder: the model reads whole texts only; decode without a cache")
        self.config = config
        self.params = _unstack(params, config)
        self._run = compiled(config, sampling, everywhere(params), rows)

    def start(self, prompts: Sequence[Sequence[int]], keys: Array, room: int) -> CachedTexts:
        """Reads prompts (prefill) and draws the first token of each.

        Args:
          prompts: ids, at least one each.
          keys: of the draws, one for each prompt; a token's draw depends on its position, too.
          room: tokens that a text may have at most, its prompt included.

        Raises:
          ValueError: for an empty prompt, or one that leaves no room.
        """
        tokens, lengths = padded(prompts, room)
        held = self._run.empty(len(prompts), room)
        drawn = jnp.zeros(len(prompts), jnp.int32)
        for first in range(0, tokens.shape[1], CHUNK):
            chunk = tokens[:, first : first + CHUNK]
            token, after = self._run.read(self.params, chunk, held, first, lengths, keys)
            while lacking := _lacking(after, room):
                held = cache.resized(held, lacking)
                token, after = self._run.read(self.params, chunk, held, first, lengths, keys)
            held = after
            drawn = jnp.where((lengths > first) & (lengths <= first + CHUNK), token, drawn)
        return CachedTexts(drawn, lengths, np.ones(len(prompts), bool), keys, room, held)

    def step(self, texts: CachedTexts) -> CachedTexts:
        """Reads the last token of every open text, and draws the next.

        The cache that is given is used up.
        """
        held = texts.cache
        if lacking := _lacking(held, texts.room, more=1):
            held = cache.resized(held, lacking)
        token, held = self._run.step(
            self.params, texts.token, held, texts.position, texts.is_open, texts.keys
        )
        return dataclasses.replace(texts, cache=held, token=token, position=texts.position + 1)


def padded(
    prompts: Sequence[Sequence[int]], room: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Returns prompts as rows of one of a few lengths, and the number of tokens of each.

    Raises:
      ValueError: for an empty prompt, or one that leaves no room.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    if not lengths.all():
        raise ValueError("generate: the prompt has 0 tokens, takes at least 1")
    if lengths.max() > room:
        raise ValueError(f"generate: a prompt has {lengths.max()} tokens, takes up to {room}")
    tokens = np.zeros((len(prompts), rounded(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def rounded(length: int) -> int:
    """Returns the next of the few lengths that are compiled: 64, 128, 192, 256, 384, 512, 768..."""
    size = BUCKET
    while size < length:
        size *= 2
    return size * 3 // 4 if size > 2 * BUCKET and length <= size * 3 // 4 else size


def everywhere(params: Any) -> NamedSharding | None:
    """Returns how an array lies whole on every device over which parameters lie, if several."""
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None


def _lacking(held: Cache, room: int, more: int = 0) -> dict[tuple[str, int], int]:
    """Returns the places that steps are to have where one lacks some, by stack and owner.

    Args:
      held: the caches.
      room: tokens that a text may have at most.
      more: places that each has to have besides those that are taken.
    """
    routed = {
        (name, owner): past
        for name, pasts in held.pasts.items()
        for owner, past in pasts.items()
        if past.size < room
    }
    used = jax.device_get({place: past.used.max() for place, past in routed.items()})
    lacking = {p: past for p, past in routed.items() if used[p] + more > past.size}
    if lacking and room <= SHORT:
        return dict.fromkeys(routed, room)
    return {
        place: min(room, max(int(GROWTH * past.size), int(used[place]) + more))
        for place, past in lacking.items()
    }


class Compiled(NamedTuple):
    """The programs of a decoder.

    Attributes:
      empty: makes a cache, of texts and room for tokens.
      read: reads part of a prompt.
      step: reads one token of each text.
    """

    empty: Any
    read: Any
    step: Any


@functools.lru_cache(maxsize=16)
def compiled(
    config: Model,
    sampling: Sampling,
    whole: NamedSharding | None = None,
    rows: NamedSharding | None = None,
) -> Compiled:
    """Returns the programs that read tokens and draw the next.

    Args:
      config: the model.
      sampling: of the tokens.
      whole: where drawn tokens lie, if parameters lie over several devices.
      rows: how texts lie over devices; None leaves it to the compiler.
    """

    def split(tree: Any) -> Any:
        lay = lambda x: jax.lax.with_sharding_constraint(x, rows)
        return tree if rows is None else jax.tree.map(lay, tree)

    def empty(batch: int, room: int) -> Cache:
        held = cache.empty(config, batch, room)
        return dataclasses.replace(held, pasts=split(held.pasts))

    def draw(params: Any, hidden: Array, keys: Array, position: Array) -> Array:
        logits = model.logits(params, hidden, config)
        drawn = sampling.draw(logits, jax.vmap(jax.random.fold_in)(split(keys), position))
        return drawn if whole is None else jax.lax.with_sharding_constraint(drawn, whole)

    def read(
        params: Any, tokens: Array, held: Cache, first: Array, lengths: Array, keys: Array
    ) -> tuple[Array, Cache]:
        tokens, lengths = split((tokens, lengths))
        places = jnp.broadcast_to(first + jnp.arange(tokens.shape[1]), tokens.shape)
        segments = (places < lengths[:, None]).astype(jnp.int32)
        how: Any = {"positions": places, "segment_ids": segments}
        hidden, held = model.extend(params, tokens, config, held, **how)
        last = jnp.clip(lengths - 1 - first, 0, tokens.shape[1] - 1)
        hidden = hidden[jnp.arange(len(tokens)), last]
        return draw(params, hidden, keys, lengths), held

    def step(
        params: Any, token: Array, held: Cache, position: Array, is_open: Array, keys: Array
    ) -> tuple[Array, Cache]:
        token, position, is_open = split((token, position, is_open))
        hidden, held = model.extend(
            params,
            token[:, None],
            config,
            held,
            positions=position[:, None],
            segment_ids=is_open[:, None].astype(jnp.int32),
        )
        return draw(params, hidden[:, 0], keys, position + 1), held

    make = jax.jit(empty, static_argnums=(0, 1))
    return Compiled(make, jax.jit(read), jax.jit(step, donate_argnums=2))
