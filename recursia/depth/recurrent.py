"""Depth drawn anew at every training step, from a state that starts as noise.

Huginn: Geiping et al. 2025, arXiv 2502.05171. Training walks a random number r of recursions, one
for all tokens, hosts and microbatches of a step, and its gradient goes through the last few only:
memory does not grow with r, and one program serves every r. At inference the depth is any number,
or each token's own, where the state of a token that has come to rest is kept.
"""

import dataclasses
import functools
import math
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recursia import batch, injection, ranges
from recursia.depth import rest
from recursia.depth.policy import Aux, Call, Pass, Policy
from recursia.layers.attention import Context
from recursia.sharing.remat import ENTERED
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Recursion, Stack

_SPREAD = np.linspace(-6, 6, 601)  # of a normal number, in deviations; finer than any Poisson's


@dataclasses.dataclass(frozen=True)
class Recurrent(Policy):
    """A depth that is drawn in training.

    Attributes:
      backprop_depth: how many of a training step's last recursions its gradient goes through; with
        0 the core is not trained.
      sampler: "poisson_lognormal" draws 1 + Poisson(rate) recursions, the rate log-normal; its mean
        is `num_recursions` + 1. "fixed" always walks `num_recursions`.
      sigma: standard deviation of the logarithm of the rate; 0 makes it constant.
      state_std: standard deviation of the first state, before it is cut at three of them; the
        default is the embedding's, sqrt(2 / (5 D)) times the scale sqrt(D).
      exit: when a token keeps its state from then on, outside training: never ("none"), or once a
        recursion changes it by little: its state ("latent_diff", "cosine"), or what coda and head
        predict from it ("kl", "entropy"), as `rest.is_near` says.
      exit_threshold: what is little; None takes 0.03 for "latent_diff" and 0.001 for the others.
    """

    shows_stopped = True

    backprop_depth: int = 8
    sampler: Literal["poisson_lognormal", "fixed"] = "poisson_lognormal"
    sigma: float = 0.5
    state_std: float = math.sqrt(2 / 5)
    exit: rest.Criterion = "none"
    exit_threshold: float | None = None

    def __post_init__(self):
        if self.exit_threshold is None:
            object.__setattr__(self, "exit_threshold", rest.THRESHOLDS[self.exit])
        super().__post_init__()
        ranges.at_least(0, self, "backprop_depth", "state_std", "exit_threshold")
        if not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma: got {self.sigma}, takes a number from 0 to 1")

    def check(self, schedule: Schedule, coda: int, inject: injection.Injection) -> None:
        """Refuses what a walk of any length, from noise, cannot do.

        Raises:
          ValueError: for order "sequence", keys and values of the first recursion, recursions with
            weights of their own or told apart, or not told the core's input.
        """
        super().check(schedule, coda, inject)
        each = range(schedule.num_recursions)
        if any(schedule.is_source(r) or schedule.is_reader(r) for r in each):
            raise ValueError(
                "kv_sharing: a recursion reads keys and values of another, and under depth "
                "recurrent the first recursions are mostly walked without a gradient; take 'own'"
            )
        if varying := [slot for slot, _ in schedule.entries if schedule.varies(slot)]:
            raise ValueError(
                f"depth: recurrent walks any number of recursions with the same weights, and "
                f"{', '.join(varying)} varies along them; take sharing 'cycle', or depth.kind "
                "'fixed'"
            )
        if inject.input == "none" or inject.step != "none":
            raise ValueError(
                f"inject: got input {inject.input!r} and step {inject.step!r}; under depth "
                "recurrent, that starts from noise and draws its length, take input 'adapter' or 'add', "
                "and step 'none'"
            )

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the states after the recursions of this call.

        Args:
          stack: the core.
          params: none.
          x: what the core is entered with; recursions start from another state.
          context: where the tokens stand, and `x` itself.
          call: mode "train" draws the depth with its key; the others walk `num_recursions`, or
            until `exit`. They differ in that "causal" stops when every wanted token has come to
            rest.
        """
        state = initial_state(self, call, x, context.positions)
        if call.mode == "train":
            return _truncated(stack, state, context, self, draw(self, call.key))
        return _adaptive(stack, state, context, self, call)

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of another depth."""
        return dataclasses.replace(self, num_recursions=num_recursions)

    @property
    def is_incremental(self) -> bool:
        """Whether no exit reads a state through the coda, whose keys would be another depth's."""
        return self.exit not in ("kl", "entropy")

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns the recursions of a training step without and with a gradient: mean numbers."""
        counts = draw(self, None)
        if self.sampler != "fixed":
            chance = odds(self.num_recursions, self.sigma)
            walked = 1 + np.arange(len(chance))
            trained = np.minimum(walked, self.backprop_depth)
            counts = float(chance @ (walked - trained)), float(chance @ trained)
        full = lambda times, is_trained: Pass(0, seq_len, times=times, is_trained=is_trained)
        return [full(counts[0], False), full(counts[1], True)]


@functools.lru_cache
def odds(num_recursions: int, sigma: float) -> Float[np.ndarray, "M"]:
    """Returns the probability that training walks 1, 2, ... recursions.

    Args:
      num_recursions: mean of the rate.
      sigma: standard deviation of its logarithm.
    """
    weights = np.exp(-(_SPREAD**2) / 2)
    rates = num_recursions * np.exp(sigma * _SPREAD - sigma**2 / 2)
    # Beyond eight deviations of the highest rate's Poisson nothing is left.
    counts = np.arange(math.ceil(rates.max() + 8 * math.sqrt(rates.max()) + 16))
    factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    sums = sum(
        weight * np.exp(counts * math.log(rate) - rate - factorials)
        for weight, rate in zip(weights, rates, strict=True)
    )
    return sums / sums.sum()


def draw(config: Recurrent, key: Array | None) -> tuple[int | Int[Array, ""], int | Int[Array, ""]]:
    """Returns how many recursions a training step walks without a gradient, and then with one.

    Args:
      config: the policy; with sampler "fixed" the numbers are known before the step.
      key: of the step; None draws the same number every time.
    """
    if config.sampler == "fixed":
        count = config.num_recursions
        return max(count - config.backprop_depth, 0), min(count, config.backprop_depth)
    key = jax.random.key(0) if key is None else key
    number = jax.random.uniform(jax.random.fold_in(key, zlib.crc32(b"recursions")))
    until = np.cumsum(odds(config.num_recursions, config.sigma))
    count = 1 + jnp.searchsorted(jnp.array(until[:-1], jnp.float32), number, side="right")
    return jnp.maximum(count - config.backprop_depth, 0), jnp.minimum(count, config.backprop_depth)


def initial_state(
    config: Recurrent, call: Call, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Returns what recursions start from: `call.state`, or noise as wide as `x`.

    A token's noise depends on its row and its position in its document, and on nothing else in the
    batch; with no key not on the row, so that a text has one score wherever it stands.
    """
    if call.state is not None:
        return call.state.astype(x.dtype)
    rows = batch.rows(x.shape[0]) * int(call.key is not None)
    key = jax.random.key(0) if call.key is None else call.key
    key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(b"state")), call.microbatch)

    def noise(row: Array, position: Array) -> Array:
        token = jax.random.fold_in(jax.random.fold_in(key, row), position)
        return jax.random.truncated_normal(token, -3.0, 3.0, x.shape[-1:], jnp.float32)

    drawn = jax.vmap(jax.vmap(noise, (None, 0)))(rows, positions)
    return (config.state_std * drawn).astype(x.dtype)


def _truncated(
    stack: Stack, x: Array, context: Context, config: Recurrent, counts: tuple[Any, Any]
):
    """Walks some recursions without a gradient, then some with one."""
    recursion = stack.recursion(0)

    def once(x: Array) -> tuple[Array, dict[str, Any]]:
        y, made = recursion.run(recursion.enter(x, context), context)
        return y, made.report

    # A loop of unknown length has no gradient, not even a zero one: what it reads must have none.
    alone, read = jax.closure_convert(lambda x: once(x)[0], x)
    read = jax.lax.stop_gradient(read)
    first, last = counts
    walked = jax.lax.fori_loop(0, first, lambda _, x: alone(x, *read), jax.lax.stop_gradient(x))
    x = jnp.where(first > 0, walked, x)
    if config.sampler == "fixed":
        x, report = jax.lax.scan(lambda x, _: once(x), x, length=last)
    else:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(once, x))
        skip = lambda x: (x, nothing[1])
        step = lambda x, is_walked: jax.lax.cond(is_walked, once, skip, x)
        if (
            stack.remat.unit == "block"
        ):  # or each recursion would keep the shared weights that it read
            kept = jax.checkpoint_policies.save_only_these_names(ENTERED)
            step = jax.checkpoint(step, prevent_cse=False, policy=kept)
        x, report = jax.lax.scan(step, x, jnp.arange(config.backprop_depth) < last)
    depth_used = jnp.full(x.shape[:2], first + last)
    metrics = {"token_correlation": _correlation(x, context)}
    return x, Aux({}, metrics, depth_used, None, jax.tree.map(_as_first(stack.schedule), report))


def _as_first(schedule: Schedule):
    """Returns a function to reports [R K ...] from those of any number of recursions.

    All weights are the same along recursions, so that the sum may stand for any of them.
    """
    rest = ((0, schedule.num_recursions - 1),)
    return lambda leaf: jnp.pad(leaf.sum(0)[None], rest + ((0, 0),) * (leaf.ndim - 1))


def _correlation(x: Float[Array, "B T D"], context: Context) -> Float[Array, ""]:
    """Returns the mean cosine between the states of two tokens of a row; near 1 they are alike."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)
    if context.is_live is None:
        return batch.mean(jnp.square(unit.mean(1)).sum(-1), 0)
    count = context.is_live.sum(1)
    middle = unit.sum(1, where=context.is_live[..., None]) / jnp.maximum(count, 1)[:, None]
    return batch.mean(jnp.square(middle).sum(-1), 0, count > 0)


def _adaptive(stack: Stack, x: Array, context: Context, config: Recurrent, call: Call):
    """Walks until every token rests, or all recursions; a resting token's state stays as it is."""

    observed = lambda x: rest.observed(config.exit, stack.read, x, context)

    def step(carry: tuple[Array, ...], recursion: Recursion, _: None):
        x, before, is_resting, depth = carry
        y, made = recursion.run(recursion.enter(x, context), context)
        y = jnp.where(is_resting[..., None], x, y)
        depth += (~is_resting).astype(depth.dtype)
        after = observed(y)
        is_near = rest.is_near(config.exit, config.exit_threshold, before, after)
        return (y, after, is_resting | is_near, depth), y, made

    nobody = jnp.zeros(x.shape[:2], bool)
    carry = (x, observed(x), nobody, nobody.astype(jnp.int32))
    if call.mode == "eval" or config.exit == "none":
        (x, *_, depth), states, report, _ = stack.loop(step, carry)
        return x, Aux({}, {}, depth, states, report)
    wanted = ~nobody if call.wanted is None else call.wanted
    goes_on = lambda carry: jnp.any(wanted & ~carry[2])
    x, *_, depth = stack.loop_while(step, carry, None, goes_on)
    return x, Aux({}, {}, depth, None)
