"""Decoding without a KV cache: a full forward pass in causal mode for every new token.

Each token decides alone how deep it goes, as it will with a cache; nothing is kept between tokens.
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
    params: Any,
    config: Model,
    prompt: list[int],
    *,
    num_tokens: int,
    window: int,
    temperature: float,
    end_of_text: int,
    key: Array,
) -> list[int]:
    """Returns a continuation of a prompt.

    Args:
      params: float32 parameters.
      config: the model.
      prompt: ids, at least one.
      num_tokens: how many to draw at most.
      window: the latest tokens that the model is given.
      temperature: of the distribution; 0 takes the likeliest token.
      end_of_text: the id that ends the text; it is not returned.
      key: of the draws; a token's draw depends on its place.

    Raises:
      ValueError: for an empty prompt.
    """
    if not prompt:
        raise ValueError("generate: the prompt has 0 tokens, takes at least 1")
    text = jnp.zeros(len(prompt) + num_tokens, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
    window = min(window, text.shape[0])
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    # Parameters may lie over the devices of several processes: each then needs the whole text.
    whole = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None
    run = _decode(config, len(prompt), window, temperature > 0, whole)
    drawn = jax.device_get(run(params, text, key, max(temperature, 1e-6)))[len(prompt) :].tolist()
    return drawn[: drawn.index(end_of_text)] if end_of_text in drawn else drawn


def lower(config: Model, length: int, device: Any) -> jax.stages.Lowered:
    """Returns the drawing of one token after all others of a text, lowered for a device.

    Args:
      config: the model.
      length: tokens of the text and of the window.
      device: which need not be here.
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
def _decode(config: Model, start: int, window: int, is_random: bool, whole: NamedSharding | None):
    """Returns a compiled function that fills a text from place `start` on."""

    def fill(params: Any, text: Int[Array, "T"], key: Array, temperature: Array) -> Array:
        def step(place: Array, text: Array) -> Array:
            first = jnp.maximum(place - window, 0)
            seen = jax.lax.dynamic_slice(text, (first,), (window,))[None]
            last = place - first - 1
            along = jnp.arange(window)[None]
            how = {"mode": "causal", "wanted": along == last}
            # What stands after `place` is not yet text: padding.
            how["segment_ids"] = (along <= last).astype(jnp.int32)
            hidden = model.apply(params, seen, config, **how).hidden
            logits = model.logits(params, hidden[0, last], config)
            drawn = jax.random.categorical(jax.random.fold_in(key, place), logits / temperature)
            token = drawn if is_random else jnp.argmax(logits)
            return text.at[place].set(token.astype(text.dtype))

        return jax.lax.fori_loop(start, text.shape[0], step, text)

    return jax.jit(fill, out_shardings=whole)
