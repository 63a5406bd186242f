"""What the layers of a model do on a text: their states, their keys, and the model's own states."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from recursia import cache, model
from recursia.architecture import Model
from recursia.convert import recursive, unroll
from recursia.depth.fixed import Fixed
from recursia.errors import ConfigError
from recursia.parameterisations.standard import Standard
from recursia.params import Params

Batches = Sequence[dict[str, np.ndarray]]


def dense(params: Params, config: Model) -> tuple[Model, Params]:
    """Returns the model whose layers share nothing and that computes the same, as `unroll` does.

    Raises:
      ConfigError: if there is none.
    """
    if config.parameterisation != Standard():
        raise ConfigError(
            "config.parameterisation: scales follow from the number of layers, which a fold "
            "changes; give a --workdir whose kind is 'standard'"
        )
    try:
        target = unroll.unrolled(config)
    except ConfigError as error:
        field = str(error).partition(":")[0]
        raise ConfigError(
            f"{field}: a model is folded that has fixed depth and blocks alone, each with keys of "
            "its own; give another --workdir"
        ) from None
    key = jax.random.key(0)  # nothing is drawn
    return target, recursive.recursive(params, config, target, "first", key=key)


def by_layer(config: Model) -> Model:
    """Returns a model of one recursion as one whose layers are recursions, of equal parameters."""
    kv, window = config.kv, config.kv.window
    if not isinstance(window, int):
        kv = dataclasses.replace(kv, window=tuple((bound,) for bound in window[0]))
    return dataclasses.replace(config, depth=Fixed(config.num_layers), kv=kv)


def states(params: Params, config: Model, batches: Batches) -> Float[np.ndarray, "L N D"]:
    """Returns the states after each layer of a dense model, of all tokens of a text."""
    of = lambda out: out.states
    return np.concatenate([*_results(params, config, batches, of, True)], 1)


def hidden(params: Params, config: Model, batches: Batches) -> Float[np.ndarray, "N D"]:
    """Returns the last states of a model, as the head reads them, of all tokens of a text."""
    of = lambda out: out.hidden[None]
    return np.concatenate([*_results(params, config, batches, of, False)], 1)[0]


def _results(
    params: Params, config: Model, batches: Batches, of: Any, keeps_states: bool
) -> Iterator[np.ndarray]:
    def read(params: Params, batch: dict[str, Any]) -> Any:
        how: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        how |= {"mode": "eval", "keeps_states": keeps_states}
        return of(model.apply(params, batch["tokens"], config, **how))

    compiled = jax.jit(read)
    for batch in batches:
        yield np.asarray(compiled(params, batch), np.float32)[:, batch["weights"] > 0]


def keys(params: Params, config: Model, batches: Batches) -> Float[np.ndarray, "L M"]:
    """Returns the keys and values of each layer by position, as means over the rows of a text."""
    apart = cache.unstack(params, config)

    def read(params: Params, batch: dict[str, Any]) -> Any:
        tokens = batch["tokens"]
        where = {
            "positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
            "segment_ids": (batch["segment_ids"] > 0).astype(jnp.int32),
        }
        held = cache.empty(config, *tokens.shape)
        pasts = model.extend(params, tokens, config, held, **where)[1].pasts["core"]
        flat = lambda past: [leaf.mean(0).ravel() for leaf in jax.tree.leaves(past.keys_values)]
        return jnp.stack([jnp.concatenate(flat(pasts[place])) for place in sorted(pasts)])

    compiled = jax.jit(read)
    return np.mean([np.asarray(compiled(apart, batch), np.float32) for batch in batches], 0)
