"""Decoding by a full forward pass in causal mode for every new token, without a KV cache.

In causal mode each token's depth depends on that token alone, as decoding with a cache requires.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int

from recursia import model
from recursia import params as parameters
from recursia.architecture import Model


def generate(
    params: dict[str, Any],
    config: Model,
    prompt: list[int],
    *,
    num_tokens: int,
    window: int,
    temperature: float,
    end_of_text: int,
    key: Array,
) -> list[int]:
    """Returns the token ids of a continuation of a prompt.

    Args:
      params: float32 parameters.
      config: the model.
      prompt: token ids, at least one.
      num_tokens: number of tokens to draw at most.
      window: number of the latest tokens that the model attends to.
      temperature: of the distribution; 0 takes the likeliest token.
      end_of_text: the id that ends the text; it is not returned.
      key: of the draws; the draw of a token depends on its position.

    Raises:
      ValueError: for an empty prompt.
    """
    if not prompt:
        raise ValueError("generate: the prompt has 0 tokens; give at least 1")
    text = jnp.zeros(len(prompt) + num_tokens, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
    window = min(window, text.shape[0])
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    # The result is replicated, for the mesh may span several processes, and each reads the text.
    replicated = (
        NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None
    )
    fill = _decode(config, len(prompt), window, temperature > 0, replicated)
    drawn = jax.device_get(fill(params, text, key, max(temperature, 1e-6)))[len(prompt) :].tolist()
    return drawn[: drawn.index(end_of_text)] if end_of_text in drawn else drawn


def lower(config: Model, length: int, device: Any) -> jax.stages.Lowered:
    """Returns the lowered program that draws the last token of a text on one device.

    Args:
      config: the model.
      length: tokens of the text and of the window.
      device: of this machine, or described by a topology.
    """
    where = SingleDeviceSharding(device)
    text, key = jax.ShapeDtypeStruct((length,), jnp.int32), jax.eval_shape(jax.random.key, 0)
    arguments = (
        parameters.abstract(model.specs(config)),
        text,
        key,
        jax.ShapeDtypeStruct((), "f4"),
    )
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return _decode(config, length - 1, length, True, None).lower(*jax.tree.map(place, arguments))


@functools.lru_cache(maxsize=16)
def _decode(
    config: Model, start: int, window: int, is_random: bool, replicated: NamedSharding | None
) -> jax.stages.Wrapped:
    """Returns a jitted function that fills a text from position `start` on."""

    def fill(
        params: dict[str, Any], text: Int[Array, "T"], key: Array, temperature: Array
    ) -> Array:
        def step(position: Array, text: Array) -> Array:
            first = jnp.maximum(position - window, 0)
            seen = jax.lax.dynamic_slice(text, (first,), (window,))[None]
            last = position - first - 1
            columns = jnp.arange(window)[None]
            out = model.apply(
                params,
                seen,
                config,
                mode="causal",
                wanted=columns == last,
                segment_ids=(columns <= last).astype(jnp.int32),  # later columns are padding
            )
            logits = model.logits(params, out.hidden[0, last], config)
            drawn = jax.random.categorical(jax.random.fold_in(key, position), logits / temperature)
            token = drawn if is_random else jnp.argmax(logits)
            return text.at[position].set(token.astype(text.dtype))

        return jax.lax.fori_loop(start, text.shape[0], step, text)

    return jax.jit(fill, out_shardings=replicated)
