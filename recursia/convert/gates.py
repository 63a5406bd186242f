"""Learned gates of layers, by which those that do least are left out (FoldGPT, arXiv 2407.00928).

A layer adds g times what it adds to the stream, with g in [0, 1] the only parameters that train. A
penalty g (1 - g) drives them apart. All layers cost the same, so that FLOPs are held to a share by
projecting the gates, after each step, onto those whose sum is the number of layers to keep at most.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from recursia import model
from recursia.architecture import Model
from recursia.convert import calibration
from recursia.depth.fixed import Fixed
from recursia.depth.policy import Aux, Call, Result
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.losses import token_nats
from recursia.params import Params
from recursia.sharing.recursion import Recursion
from recursia.sharing.stack import Stack

PENALTY, LEARNING_RATE, CHUNK = 0.1, 0.02, 128


class Gated(Fixed):
    """Fixed depth, where each recursion adds a gate's share of what it adds to the stream."""

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after all recursions; with gates of 1 they are those of fixed depth.

        Args:
          stack: the core.
          params: `gates`, one for each recursion.
          x: hidden states that enter the core.
          context: of the tokens.
          call: of the forward pass.
        """

        def step(x: Array, recursion: Recursion, gate: Array):
            y, made = recursion.run(recursion.enter(x, context), context)
            return ((1 - gate) * x + gate * y).astype(x.dtype), None, made

        x, _, report, _ = stack.loop(step, x, params["gates"])
        depth_used = jnp.full(x.shape[:2], stack.schedule.num_recursions)
        return x, Aux({}, {}, depth_used, None, report)


def gated(config: Model) -> Model:
    """Returns a dense model of one recursion as one with a gate on each layer."""
    layers = calibration.by_layer(config)
    return dataclasses.replace(layers, depth=Gated(config.num_layers))


def learned(
    params: Params, config: Model, batches: calibration.Batches, keep: int, num_steps: int
) -> Float[np.ndarray, "L"]:
    """Returns the gates of the layers of a dense model, all other parameters left as they are.

    Args:
      params: of the model.
      config: a model of one recursion that shares nothing.
      batches: a text, read again and again.
      keep: the sum of the gates at most.
      num_steps: of training.
    """
    with_gates, optimizer = gated(config), optax.adam(LEARNING_RATE)

    def loss(gates: Array, params: Params, batch: dict[str, Array]) -> Array:
        packing: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        given = {**params, "depth": {"gates": gates}}
        out = model.apply(given, batch["tokens"], with_gates, mode="eval", **packing)
        head = config.embed.head(params["embed"])
        nats = batch["weights"] * token_nats(out.hidden, head, batch["targets"], CHUNK)
        return nats.sum() / batch["weights"].sum() + PENALTY * (gates * (1 - gates)).mean()

    @jax.jit
    def step(gates: Array, state: optax.OptState, params: Params, batch: dict[str, Array]):
        gradient = jax.grad(loss)(gates, params, batch)
        updates, state = optimizer.update(gradient, state)
        return projected(gates + jnp.asarray(updates), keep), state

    gates = projected(jnp.ones(config.num_layers), keep)
    state = optimizer.init(gates)
    for batch in itertools.islice(itertools.cycle(batches), num_steps):
        gates, state = step(gates, state, params, batch)
    return np.asarray(gates)


def projected(gates: Float[Array, "L"], keep: int) -> Float[Array, "L"]:
    """Returns the nearest gates in [0, 1] whose sum is at most `keep`."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        is_over = jnp.clip(gates - middle, 0, 1).sum() > keep
        return jnp.where(is_over, middle, low), jnp.where(is_over, high, middle)

    _, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros(()), jnp.maximum(gates.max(), 0)))
    inside = jnp.clip(gates, 0, 1)
    return jnp.where(inside.sum() <= keep, inside, jnp.clip(gates - high, 0, 1))


def without(params: Params, config: Model, kept: list[int]) -> tuple[Model, Params]:
    """Returns a dense model of one recursion with only some of its layers, and its parameters."""
    kv, window = config.kv, config.kv.window
    if not isinstance(window, int):
        kv = dataclasses.replace(kv, window=(tuple(window[0][layer] for layer in kept),))
    core = jax.tree.map(lambda leaf: leaf[np.array(kept)], params["core"])
    return dataclasses.replace(config, num_layers=len(kept), kv=kv), {**params, "core": core}
