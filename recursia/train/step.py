"""The training step: one program over a mesh."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from recursia import model, params, settings, sharding
from recursia.layers import embedding
from recursia.params import Leaf
from recursia.train import distill, losses, optimizer

Batch = dict[str, Array]  # tokens, targets, positions, segment_ids, weights: each [B T]


@struct.dataclass
class State:
    """What training carries from step to step, and a checkpoint holds."""

    step: Leaf  # []
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything about a run that its steps need: built once, then pure functions.

    Attributes:
      run: the settings.
      model: the model, at full depth and capacity.
      mesh: the devices.
      teacher: whose predictions it learns from besides, if any.
    """

    run: settings.Run
    model: model.Config
    mesh: Mesh
    teacher: distill.Teacher | None = None

    @functools.cached_property
    def specs(self) -> Any:
        """The parameters, as specs."""
        return model.specs(self.model)

    @functools.cached_property
    def factor(self) -> optax.Schedule:
        """The learning rate's factor by step."""
        return optimizer.schedule(self.run.schedule, self.run.train.num_steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Clipping and AdamW."""
        return optimizer.make(self.run.optimizer, self.factor, self.specs)

    @functools.cached_property
    def batch_sharding(self) -> NamedSharding:
        """Rows of a batch over all devices that split it."""
        split = sharding.partition(("batch", None), self.run.mesh.rules)
        return NamedSharding(self.mesh, split)

    @functools.cached_property
    def state_shardings(self) -> State:
        """Where each part of the state lies: moments lie with their parameters."""
        where = sharding.shardings(self.specs, self.mesh, self.run.mesh.rules)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        moments = jax.eval_shape(self.optimizer.init, params.abstract(self.specs))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda _, place: place,
            moments,
            where,
            transform_non_params=lambda _: everywhere,
        )
        return State(everywhere, where, moments)

    def init(self) -> State:
        """Returns the state before the first step, already where it belongs."""
        # This runs once: on a CPU, optimising its code takes longer than it takes.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        start = jax.jit(self._start, out_shardings=self.state_shardings, compiler_options=quick)
        return start(self.run.train.seed)

    def _start(self, seed: Int[Array, ""]) -> State:
        weights = params.init(self.specs, jax.random.key(seed))
        return State(jnp.zeros((), jnp.int32), weights, self.optimizer.init(weights))

    def abstract(self) -> State:
        """Returns the shapes, dtypes and places of `init()` without making anything."""
        shapes = jax.eval_shape(self._start, 0)
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.tree.map(place, shapes, self.state_shardings)

    def put(self, batch: dict[str, Any]) -> Batch:
        """Returns this process's rows of a batch as one array over the mesh."""
        make = jax.make_array_from_process_local_data
        return {name: make(self.batch_sharding, rows) for name, rows in batch.items()}

    def step_function(self, step: int) -> Callable[[State, Batch], tuple[State, dict[str, Array]]]:
        """Returns the compiled `state, metrics = f(state, batch)` of a step; the state is donated.

        Steps whose model is the same share one program.
        """
        return self._compiled(model.at_step(self.model, step))

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _compiled(self, config: model.Config) -> Callable:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        jitted = jax.jit(
            functools.partial(train_step, self, config),
            in_shardings=(self.state_shardings, self.batch_sharding, None),
            out_shardings=(self.state_shardings, everywhere),
            donate_argnums=0,
        )

        def run(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
            with jax.set_mesh(self.mesh):
                return jitted(state, batch, self.teacher and self.teacher.params)

        return run


def train_step(
    trainer: Trainer, config: model.Config, state: State, batch: Batch, taught_by: Any = None
) -> tuple[State, dict[str, Array]]:
    """Returns the state after one update, and what was measured before it.

    Args:
      trainer: of the run.
      config: the model of this step.
      state: before it.
      batch: its rows.
      taught_by: parameters of the trainer's teacher: arguments, or they would be compiled in.
    """
    total = jnp.maximum(batch["weights"].sum(), 1.0)
    count = trainer.run.train.num_microbatches
    teacher = trainer.teacher and dataclasses.replace(trainer.teacher, params=taught_by)
    loss = functools.partial(loss_fn, trainer.run, config, teacher=teacher)
    grad = jax.value_and_grad(loss, has_aux=True)
    if count == 1:
        (_, metrics), grads = grad(state.params, batch, total, state.step, 0)
    else:
        # Rows are dealt out in turn, so that each device's rows stay on it.
        deal = lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

        def add(grads: Any, part: tuple[Batch, Array]) -> tuple[Any, dict[str, Array]]:
            (_, metrics), more = grad(state.params, part[0], total, state.step, part[1])
            return jax.tree.map(jnp.add, grads, more), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        parts = (jax.tree.map(deal, batch), jnp.arange(count))
        grads, metrics = jax.lax.scan(add, zeros, parts)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    updates, opt_state = trainer.optimizer.update(grads, state.opt_state, state.params)
    metrics |= {
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": trainer.run.optimizer.learning_rate * trainer.factor(state.step),
    }
    weights = optax.apply_updates(state.params, updates)
    policy = model.module(config.depth)
    if hasattr(policy, "after_step"):
        weights["depth"] = policy.after_step(config.depth, weights["depth"], metrics)
    return State(state.step + 1, weights, opt_state), metrics


def loss_fn(
    run: settings.Run,
    config: model.Config,
    weights: Any,
    batch: Batch,
    total: Float[Array, ""],
    step: Int[Array, ""],
    part: int | Int[Array, ""],
    teacher: distill.Teacher | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns a microbatch's share of the loss, and its share of every metric.

    Args:
      run: the settings.
      config: the model of this step.
      weights: the parameters.
      batch: rows of the microbatch.
      total: sum of the token weights of the whole batch.
      step: of training.
      part: which microbatch of the step this is; terms that are no sum over tokens are averaged
        over all of them.
      teacher: whose predictions are learnt from besides.
    """
    trains = optimizer.trainable(run.optimizer, weights)
    weights = jax.tree.map(lambda w, yes: w if yes else jax.lax.stop_gradient(w), weights, trains)
    count = run.train.num_microbatches
    key = jax.random.fold_in(jax.random.key(run.train.seed), zlib.crc32(b"forward"))
    out = model.apply(
        weights,
        batch["tokens"],
        config,
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        mode="train",
        step=step,
        key=jax.random.fold_in(key, step),
        part=part,
    )
    taught = None if teacher is None else teacher.read(batch)
    predicted, nats, exits = _prediction_losses(run, config, weights, batch, out, taught)
    extra = {f"loss_{name}": value / count for name, value in out.aux.losses.items()}
    extra |= {f"loss_{name}": value / total for name, value in exits.items()}
    metrics = {
        "loss": (batch["weights"] * nats).sum() / total,
        "mean_depth": (out.aux.depth_used * batch["weights"]).sum() / total,
        **extra,
        **{name: value / count for name, value in out.aux.metrics.items()},
    }
    return predicted / total + sum(extra.values()), metrics


def _prediction_losses(
    run: settings.Run,
    config: model.Config,
    weights: Any,
    batch: Batch,
    out: model.Output,
    taught: distill.Taught | None,
) -> tuple[Float[Array, ""], Float[Array, "B T"], dict[str, Array]]:
    """Returns sums over tokens: of what predicts, in nats, and of what exits cost besides.

    Between them, each token's cross-entropy after the last recursion.
    """
    aux, targets, learnt = out.aux, batch["targets"], run.distill
    head, chunk = embedding.head(weights["embed"]), run.train.loss_chunk

    def score(hidden: Array, share: Array, taught: distill.Taught | None):
        if taught is None:
            return losses.cross_entropy(hidden, head, targets, share, chunk)
        kept = (1 - learnt.weight) * share
        read, nats = losses.cross_entropy(hidden, head, targets, kept, chunk)
        share = learnt.weight * share
        return read + distill.distance(learnt.kind, hidden, head, taught, share, chunk)[0], nats

    if aux.exit_weights is None:
        return *score(out.hidden, batch["weights"], taught), {}
    shares = aux.exit_weights * batch["weights"]
    last, nats = score(out.hidden, shares[-1], taught)
    inner = jax.lax.stop_gradient((out.hidden, head)) if learnt.exits else None
    one = lambda exit: score(model.normalise(weights, exit[0], config), exit[1], inner)
    earlier, earlier_nats = jax.lax.map(one, (aux.states[:-1], shares[:-1]))
    if aux.exits is None:
        return last + earlier.sum(), nats, {}
    every = jax.lax.stop_gradient(jnp.concatenate([earlier_nats, nats[None]]))
    each = model.module(config.depth).exit_loss(config.depth, aux.exits, every)
    return last + earlier.sum(), nats, {"exits": (batch["weights"] * each).sum()}
