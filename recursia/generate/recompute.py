"""Decoding without a KV cache: a full forward pass in causal mode for every new token.

In causal mode each token's depth depends on that token alone, as decoding with a cache requires.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Array, Int

from recursia import model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.generate import decoder
from recursia.generate.sampling import Sampling


@dataclasses.dataclass
class WholeTexts(decoder.Texts):
    """A batch of texts under way, with all that was read.

    Attributes:
      tokens: of each but the last, then padding.
    """

    tokens: Int[np.ndarray, "B T"]


class Rereader:
    """A model that continues texts and reads the whole of them for every token."""

    def __init__(
        self,
        params: dict[str, Any],
        config: Model,
        sampling: Sampling,
        rows: NamedSharding | None = None,
    ):
        """Takes parameters as they are; the arguments are those of `Decoder`."""
        self.params = params
        self._next = _next(config, sampling, decoder.everywhere(params), rows)

    def start(self, prompts: Sequence[Sequence[int]], keys: Array, room: int) -> WholeTexts:
        """Draws the first token after each prompt, as `Decoder.start` does."""
        tokens, lengths = decoder.padded(prompts, room)
        token = self._next(self.params, tokens, lengths, keys)
        return WholeTexts(token, lengths, np.ones(len(prompts), bool), keys, room, tokens)

    def step(self, texts: WholeTexts) -> WholeTexts:
        """Draws the token after the last of every open text; the others stand still."""
        position = texts.position + texts.is_open
        width = max(decoder.rounded(int(position.max())), texts.tokens.shape[1])
        tokens = np.pad(texts.tokens, [(0, 0), (0, width - texts.tokens.shape[1])])
        is_open = texts.is_open
        tokens[is_open, texts.position[is_open]] = jax.device_get(texts.token)[is_open]
        token = self._next(self.params, tokens, position, texts.keys)
        return dataclasses.replace(texts, tokens=tokens, token=token, position=position)


def lower(config: Model, length: int, device: Any) -> jax.stages.Lowered:
    """Returns the lowered program that draws the last token of a text on one device.

    Args:
      config: the model.
      length: tokens of the text.
      device: of this machine, or described by a topology.
    """
    where = SingleDeviceSharding(device)
    arguments = (
        parameters.abstract(model.specs(config)),
        jax.ShapeDtypeStruct((1, length), "i4"),
        jax.ShapeDtypeStruct((1,), "i4"),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
    )
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return _next(config, Sampling(), None, None).lower(*jax.tree.map(place, arguments))


@functools.lru_cache(maxsize=16)
def _next(
    config: Model, sampling: Sampling, whole: NamedSharding | None, rows: NamedSharding | None
) -> jax.stages.Wrapped:
    """Returns a jitted function from texts to the next token of each."""

    def run(params: dict[str, Any], tokens: Array, lengths: Array, keys: Array) -> Array:
        if rows is not None:
            lay = lambda x: jax.lax.with_sharding_constraint(x, rows)
            tokens, lengths, keys = map(lay, (tokens, lengths, keys))
        along, last = jnp.arange(tokens.shape[1]), lengths - 1
        out = model.apply(
            params,
            tokens,
            config,
            mode="causal",
            wanted=along == last[:, None],
            segment_ids=(along < lengths[:, None]).astype(jnp.int32),
        )
        hidden = jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)[:, 0]
        logits = model.logits(params, hidden, config)
        return sampling.draw(logits, jax.vmap(jax.random.fold_in)(keys, lengths))

    return jax.jit(run, out_shardings=whole)
