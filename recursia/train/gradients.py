"""The gradients of a batch: microbatches, all-gathers of weights, reduce-scatters of gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from recursia import batch as whole_batch
from recursia import fsdp, params
from recursia.architecture import Model
from recursia.params import Params
from recursia.train.objective import Batch, loss_fn
from recursia.train.placement import Placement


def gradients(
    placed: Placement,
    config: Model,
    shards: Params,
    batch: Batch,
    step: Int[Array, ""],
    teacher_params: Params | None,
    first: Int[Array, ""] | None = None,
) -> tuple[Params, dict[str, Array]]:
    """Returns the gradients and metrics of a batch, from one device's rows and parameter shards.

    A reused parameter is all-gathered once, before the step; its gradient is summed in float32 over
    microbatches and recursions and reduce-scattered once. Other parameters are gathered where they
    are used.
    """
    total = jnp.maximum(whole_batch.total(batch["weights"].sum()), 1.0)
    num_microbatches = placed.run.train.num_microbatches
    teacher, specs = placed.teacher, placed.teacher_specs
    if teacher and specs and teacher_params:
        own = _gathered(placed, specs, teacher.model.dtype, teacher_params)
        teacher = dataclasses.replace(teacher, params=own)
    loss = functools.partial(loss_fn, placed.run, config, teacher=teacher)
    grad = jax.value_and_grad(loss, has_aux=True)
    gather = functools.partial(_gathered, placed, placed.specs, config.dtype)
    weights, scatter = jax.vjp(gather, shards)
    if num_microbatches == 1:
        (_, metrics), grads = grad(weights, batch, total, step, 0 if first is None else first)
    else:
        # Microbatches take rows in turn, so that each device's rows stay on it.
        split = lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

        def add(grads: Params, microbatch: tuple[Batch, Array]) -> tuple[Params, dict[str, Array]]:
            rows, index = microbatch
            (_, metrics), more = grad(weights, rows, total, step, index)
            return jax.tree.map(jnp.add, grads, more), metrics

        zeros = jax.tree.map(jnp.zeros_like, weights)
        numbers = jnp.arange(num_microbatches)
        numbers = numbers if first is None else first + numbers
        microbatches = (jax.tree.map(split, batch), numbers)
        grads, metrics = jax.lax.scan(add, zeros, microbatches)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    (grads,) = scatter(grads)
    return _summed(placed, grads), jax.tree.map(whole_batch.total, metrics)


def _gathered(placed: Placement, specs: Params, dtype: DTypeLike, shards: Params) -> Params:
    """Returns parameters for the model: reused ones all-gathered, the others as shards."""

    def gather(spec: params.Spec, part: Array) -> Array | fsdp.Shard:
        weight = fsdp.shard(spec, part, placed.mesh, placed.run.mesh.rules)
        if not spec.is_reused:
            return weight
        return fsdp.gathered(weight, jnp.float32, jnp.float32 if spec.is_exact else dtype)

    return jax.tree.map(gather, specs, shards)


def _summed(placed: Placement, grads: Params) -> Params:
    """Returns gradients summed over the devices that hold the same shard of a parameter."""
    over = lambda where, grad: fsdp.summed(grad, where.spec)
    return jax.tree.map(over, placed.state_shardings.params, grads)
