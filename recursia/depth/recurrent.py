"""Recurrent depth: random in training with truncated backpropagation, from a state of noise.

Huginn: Geiping et al. 2025, arXiv 2502.05171. Training runs a random number r of recursions, the
same for all tokens, hosts and microbatches of a step, and backpropagates through the last few only:
memory does not grow with r, and one compiled program serves every r. At inference the depth is any
number, or each token's own: a token whose state has converged keeps it.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recursia import batch, ranges
from recursia.depth import convergence
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.params import Params
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.remat import ENTERED
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

Count = int | Int[Array, ""]
_GRID = np.linspace(-6, 6, 601)  # of a normal variable, in standard deviations


@dataclasses.dataclass(frozen=True)
class Recurrent(Policy):
    """Random depth in training, any depth at inference.

    Attributes:
      backprop_depth: number of a training step's last recursions that are backpropagated through;
        with 0 the core is not trained.
      sampler: "poisson_lognormal" draws 1 + Poisson(rate) recursions with a log-normal rate, with
        mean `num_recursions` + 1. "fixed" always runs `num_recursions`.
      sigma: standard deviation of the logarithm of the rate; 0 makes it constant.
      state_std: standard deviation of the initial state, before truncation at three of them; the
        default is the embedding's, sqrt(2 / (5 D)) times the scale sqrt(D).
      exit: outside training, when a token keeps its state from then on: never ("none"), or once a
        recursion changes little of its state ("latent_diff", "cosine") or of the prediction of coda
        and head ("kl", "entropy"), as `convergence.has_converged` says.
      exit_threshold: threshold of that change; None takes 0.03 for "latent_diff" and 0.001 for the
        others.
    """

    shows_stopped = True

    backprop_depth: int = 8
    sampler: Literal["poisson_lognormal", "fixed"] = "poisson_lognormal"
    sigma: float = 0.5
    state_std: float = math.sqrt(2 / 5)
    exit: convergence.Criterion = "none"
    exit_threshold: float | None = None

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "backprop_depth", "state_std")
        if self.exit_threshold is not None:
            ranges.at_least(0, self, "exit_threshold")
        if not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma: got {self.sigma}, takes a number from 0 to 1")

    @property
    def threshold(self) -> float:
        """`exit_threshold`, or its default."""
        default = convergence.THRESHOLDS[self.exit]
        return default if self.exit_threshold is None else self.exit_threshold

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses recursions that differ, keys and values of another, and no input injection."""
        super().check(schedule, coda, inject)
        recursions = range(schedule.num_recursions)
        if any(schedule.is_source(r) or schedule.is_reader(r) for r in recursions):
            raise ValueError(
                "kv_sharing: a recursion reads keys and values of another, and under depth "
                "recurrent the first recursions mostly have no gradient; take 'own'"
            )
        if varying := schedule.varying:
            raise ValueError(
                f"depth: recurrent runs any number of recursions with the same weights, and "
                f"{', '.join(varying)} varies along them; take sharing 'cycle', or depth.kind "
                "'fixed'"
            )
        if inject.input == "none" or inject.step != "none":
            raise ValueError(
                f"inject: got input {inject.input!r} and step {inject.step!r}; depth recurrent "
                "starts from noise and draws its number of recursions: take input 'adapter' or "
                "'add', and step 'none'"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after a random number of recursions in training, else with `exit`."""
        state = initial_state(self, call, stack.block.states(x), context.positions)
        state = stack.block.renewed(x, state)
        if call.mode == "train":
            return _truncated(stack, state, context, self, draw(self, call.key))
        return _adaptive(stack, state, context, self, call)

    @property
    def is_incremental(self) -> bool:
        """Whether no exit reads a state through the coda, whose keys would be another depth's."""
        return self.exit not in ("kl", "entropy")

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns the mean numbers of recursions of a training step without and with a gradient."""
        if self.sampler == "fixed":
            trained = min(self.num_recursions, self.backprop_depth)
            free = self.num_recursions - trained
        else:
            probability = odds(self.num_recursions, self.sigma)
            depth = 1 + np.arange(len(probability))
            last = np.minimum(depth, self.backprop_depth)
            free, trained = float(probability @ (depth - last)), float(probability @ last)
        return [Pass(0, seq_len, times=free, is_trained=False), Pass(0, seq_len, times=trained)]


@functools.lru_cache
def odds(num_recursions: int, sigma: float) -> Float[np.ndarray, "M"]:
    """Returns the probability that training runs 1, 2, ... recursions.

    Args:
      num_recursions: mean of the rate.
      sigma: standard deviation of its logarithm.
    """
    weights = np.exp(-(_GRID**2) / 2)
    rates = num_recursions * np.exp(sigma * _GRID - sigma**2 / 2)
    # Beyond eight standard deviations of the highest rate's Poisson the probability is negligible.
    counts = np.arange(math.ceil(rates.max() + 8 * math.sqrt(rates.max()) + 16))
    factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    total = np.zeros(len(counts))
    for weight, rate in zip(weights, rates, strict=True):
        total += weight * np.exp(counts * math.log(rate) - rate - factorials)
    return total / total.sum()


def draw(config: Recurrent, key: Array | None) -> tuple[Count, Count]:
    """Returns how many recursions a training step runs without a gradient, and then with one.

    Args:
      config: the policy; with sampler "fixed" both numbers are static.
      key: of the step; with None the draw is the same in every call.
    """
    if config.sampler == "fixed":
        count = config.num_recursions
        return max(count - config.backprop_depth, 0), min(count, config.backprop_depth)
    key = jax.random.key(0) if key is None else key
    number = jax.random.uniform(jax.random.fold_in(key, zlib.crc32(b"recursions")))
    until = np.cumsum(odds(config.num_recursions, config.sigma))
    count = 1 + jnp.searchsorted(jnp.array(until[:-1], jnp.float32), number, side="right")
    return jnp.maximum(count - config.backprop_depth, 0), jnp.minimum(count, config.backprop_depth)


def initial_state(config: Recurrent, call: Call, x: States, positions: Int[Array, "B T"]) -> States:
    """Returns the state that recursions start from: `call.state`, or noise in the shape of `x`.

    A token's noise depends on its row and its position in its document, and on nothing else in the
    batch. Without a key it does not depend on the row either: a text then has the same score in
    every row.
    """
    if call.state is not None:
        return call.state.astype(x.dtype)
    rows = batch.rows(x.shape[0]) * int(call.key is not None)
    key = jax.random.key(0) if call.key is None else call.key
    key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(b"state")), call.microbatch)

    def noise(row: Array, position: Array) -> Array:
        token = jax.random.fold_in(jax.random.fold_in(key, row), position)
        return jax.random.truncated_normal(token, -3.0, 3.0, x.shape[-1:], jnp.float32)

    unit = jax.vmap(jax.vmap(noise, (None, 0)))(rows, positions)
    return (config.state_std * unit).astype(x.dtype)


def _truncated(
    stack: Stack, x: States, context: Context, config: Recurrent, counts: tuple[Count, Count]
) -> Result:
    """Truncated backpropagation: runs recursions without a gradient, then some with one."""
    recursion = stack.recursion(0)

    def once(x: Array) -> tuple[Array, Report]:
        y, made = recursion.run(recursion.enter(x, context), context)
        return y, made.report

    # A loop of dynamic length has no reverse mode: nothing that it closes over may have a gradient.
    step, closed_over = jax.closure_convert(lambda x: once(x)[0], x)
    closed_over = jax.lax.stop_gradient(closed_over)
    first, last = counts
    walked = jax.lax.fori_loop(
        0, first, lambda _, x: step(x, *closed_over), jax.lax.stop_gradient(x)
    )
    x = jnp.where(first > 0, walked, x)
    if config.sampler == "fixed":
        x, report = jax.lax.scan(
            lambda x, _: once(x), x, length=min(config.num_recursions, config.backprop_depth)
        )
    else:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(once, x))
        skip = lambda x: (x, zeros[1])
        step = lambda x, is_run: jax.lax.cond(is_run, once, skip, x)
        if stack.remat.unit == "block":  # or the scan would save the shared weights R times
            saved = jax.checkpoint_policies.save_only_these_names(ENTERED)
            step = jax.checkpoint(step, prevent_cse=False, policy=saved)
        x, report = jax.lax.scan(step, x, jnp.arange(config.backprop_depth) < last)
    depth_used = jnp.full(x.shape[:2], first + last)
    metrics = {"token_correlation": _correlation(x, context)}
    report = jax.tree.map(_in_first_recursion(stack.schedule), report)
    return x, Aux({}, metrics, depth_used, None, report)


def _in_first_recursion(schedule: Schedule) -> Callable[[Array], Array]:
    """Returns a function that sums reports over any number of recursions into the first of R.

    Recursions share all bank entries, over whose uses reports are summed in any case.
    """
    zeros = ((0, schedule.num_recursions - 1),)
    return lambda leaf: jnp.pad(leaf.sum(0)[None], zeros + ((0, 0),) * (leaf.ndim - 1))


def _correlation(x: States, context: Context) -> Float[Array, ""]:
    """Returns the mean cosine between the states of two tokens of a row; 1 if they are equal."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)
    if context.is_live is None:
        return batch.mean(jnp.square(unit.mean(1)).sum(-1), 0)
    count = context.is_live.sum(1)
    mean = unit.sum(1, where=context.is_live[..., None]) / jnp.maximum(count, 1)[:, None]
    return batch.mean(jnp.square(mean).sum(-1), 0, count > 0)


def _adaptive(stack: Stack, x: States, context: Context, config: Recurrent, call: Call) -> Result:
    """Runs all recursions, or fewer in causal mode; a converged token keeps its state."""

    observed = lambda x: convergence.observed(config.exit, stack.read, x, context)

    def step(
        carry: tuple[Array, ...], recursion: Recursion, _: None
    ) -> tuple[tuple[Array, ...], Array, RecursionOutput]:
        x, before, converged, depth = carry
        y, made = recursion.run(recursion.enter(x, context), context)
        y = jnp.where(converged[..., None], x, y)
        depth += (~converged).astype(depth.dtype)
        after = observed(y)
        converges = convergence.has_converged(config.exit, config.threshold, before, after)
        return (y, after, converged | converges, depth), y, made

    none = jnp.zeros(x.shape[:2], bool)
    carry = (x, observed(x), none, none.astype(jnp.int32))
    if call.mode == "eval" or config.exit == "none":
        (x, *_, depth), states, report, _ = stack.loop(step, carry)
        return x, Aux({}, {}, depth, states, report)
    x, *_, depth = stack.loop_while(step, carry, None, lambda carry: call.wants_any(~carry[2]))
    return x, Aux({}, {}, depth, None)
