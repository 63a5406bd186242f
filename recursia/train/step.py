"""The training step: one program over a mesh."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from recursia import batch as whole_batch
from recursia import losses, model, params, settings, sharding
from recursia.architecture import Model
from recursia.layers import embedding
from recursia.params import Leaf
from recursia.train import distill, schedule

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
    model: Model
    mesh: Mesh
    teacher: distill.Teacher | None = None

    @functools.cached_property
    def specs(self) -> Any:
        """The parameters, as specs."""
        return model.specs(self.model)

    @functools.cached_property
    def factor(self) -> optax.Schedule:
        """The learning rate's factor by step."""
        return schedule.factor(self.run.schedule, self.run.train.num_steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Clipping, the update rule, weight decay and the learning rate."""
        return self.run.optimizer.transform(self.specs, self.factor)

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
        is_masked = lambda x: isinstance(x, optax.MaskedNode)  # a parameter of another rule
        moments = jax.eval_shape(self.optimizer.init, params.abstract(self.specs))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda x, place: x if is_masked(x) else place,
            moments,
            where,
            transform_non_params=lambda _: everywhere,
            is_leaf=is_masked,
        )
        return State(everywhere, where, moments)

    def init(self) -> State:
        """Returns the state before the first step, already where it belongs."""
        # This runs once: on a CPU, optimising its code takes longer than it takes.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        start = jax.jit(self._start, out_shardings=self.state_shardings, compiler_options=quick)
        return start(np.uint32(self.run.train.seed))  # an int would have 31 bits

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
        return self._compiled(self.model.at_step(step))

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _compiled(self, config: Model) -> Callable:
        jitted = self._jitted(config)

        def run(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
            with jax.set_mesh(self.mesh):
                return jitted(state, batch, self.teacher and self.teacher.params)

        return run

    def _jitted(self, config: Model) -> Any:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(
            functools.partial(train_step, self, config),
            in_shardings=(self.state_shardings, self.batch_sharding, None),
            out_shardings=(self.state_shardings, everywhere),
            donate_argnums=0,
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and places of a step's batch."""
        shape = (self.run.train.batch_size, self.run.train.seq_len)
        array = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding)
        ints = ("tokens", "targets", "positions", "segment_ids")
        return {**dict.fromkeys(ints, array(jnp.int32)), "weights": array(jnp.float32)}

    def trace(self, step: int = 0) -> jax.stages.Traced:
        """Returns the program of a step, traced for the mesh's devices, which may not be here."""
        state, batch = self.abstract(), self.abstract_batch()
        with jax.set_mesh(self.mesh):
            return self._jitted(self.model.at_step(step)).trace(
                state, batch, self.teacher and self.teacher.params
            )

    def lower(self, step: int = 0) -> jax.stages.Lowered:
        """Returns the same, lowered."""
        traced = self.trace(step)
        with jax.set_mesh(self.mesh):
            return traced.lower()


def train_step(
    trainer: Trainer, config: Model, state: State, batch: Batch, taught_by: Any = None
) -> tuple[State, dict[str, Array]]:
    """Returns the state after one update, and what was measured before it.

    Args:
      trainer: of the run.
      config: the model of this step.
      state: before it.
      batch: its rows.
      taught_by: parameters of the trainer's teacher: arguments, or they would be compiled in.
    """
    by_rows = jax.tree.map(lambda where: sharding.by_rows(where.spec), trainer.state_shardings)
    rows, everywhere = sharding.by_rows(trainer.batch_sharding.spec), PartitionSpec()
    grads, metrics = jax.shard_map(
        functools.partial(gradients, trainer, config),
        in_specs=(by_rows.params, rows, everywhere, everywhere),
        out_specs=(by_rows.params, everywhere),
        axis_names=set(whole_batch.AXES) | {a for a, n in trainer.mesh.shape.items() if n == 1},
        check_vma=False,
    )(state.params, batch, state.step, taught_by)
    updates, opt_state = trainer.optimizer.update(grads, state.opt_state, state.params)
    metrics: dict[str, Any] = metrics | {
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": trainer.run.optimizer.learning_rate * trainer.factor(state.step),
    }
    weights: Any = optax.apply_updates(state.params, updates)
    weights["depth"] = config.depth.after_step(weights["depth"], metrics)
    return State(state.step + 1, weights, opt_state), metrics


def gradients(
    trainer: Trainer,
    config: Model,
    weights: Any,
    batch: Batch,
    step: Int[Array, ""],
    taught_by: Any,
) -> tuple[Any, dict[str, Array]]:
    """Returns the batch's gradients and metrics, from this device's rows and parts of parameters.

    Parameters that recursions share are gathered once and their gradients summed once, over
    microbatches, recursions and devices, in float32; the others where they are used.
    """
    total = jnp.maximum(whole_batch.total(batch["weights"].sum()), 1.0)
    count = trainer.run.train.num_microbatches
    teacher = trainer.teacher and dataclasses.replace(trainer.teacher, params=taught_by)
    loss = functools.partial(loss_fn, trainer.run, config, teacher=teacher)
    grad = jax.value_and_grad(loss, has_aux=True)
    weights, scatter = jax.vjp(functools.partial(_gathered, trainer, config), weights)
    if count == 1:
        (_, metrics), grads = grad(weights, batch, total, step, 0)
    else:
        # Rows are dealt out in turn, so that each device's rows stay on it.
        deal = lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

        def add(grads: Any, part: tuple[Batch, Array]) -> tuple[Any, dict[str, Array]]:
            (_, metrics), more = grad(weights, part[0], total, step, part[1])
            return jax.tree.map(jnp.add, grads, more), metrics

        zeros = jax.tree.map(jnp.zeros_like, weights)
        parts = (jax.tree.map(deal, batch), jnp.arange(count))
        grads, metrics = jax.lax.scan(add, zeros, parts)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    (grads,) = scatter(grads)
    return _summed(trainer, grads), jax.tree.map(whole_batch.total, metrics)


def _gathered(trainer: Trainer, config: Model, weights: Any) -> Any:
    """Returns parameters as the model takes them: whole, or in parts where used once a step."""

    def gather(spec: params.Spec, part: Array) -> Array | sharding.Shard:
        weight = sharding.shard(spec, part, trainer.mesh, trainer.run.mesh.rules)
        if not spec.is_reused:
            return weight
        return sharding.gathered(
            weight, jnp.float32, jnp.float32 if spec.is_exact else config.dtype
        )

    return jax.tree.map(gather, trainer.specs, weights)


def _summed(trainer: Trainer, grads: Any) -> Any:
    """Returns gradients summed over the devices that hold the same part of a parameter."""

    over = lambda where, grad: sharding.summed(grad, where.spec)
    return jax.tree.map(over, trainer.state_shardings.params, grads)


def loss_fn(
    run: settings.Run,
    config: Model,
    weights: Any,
    batch: Batch,
    total: Float[Array, ""],
    step: Int[Array, ""],
    microbatch: int | Int[Array, ""],
    teacher: distill.Teacher | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns these rows' share of the loss, and their share of every metric.

    Args:
      run: the settings.
      config: the model of this step.
      weights: the parameters.
      batch: rows of the microbatch.
      total: sum of the token weights of the whole batch.
      step: of training.
      microbatch: which one of the step this is; terms that are no sum over tokens are averaged over
        all of them, and brought by each device in part.
      teacher: whose predictions are learnt from besides.
    """
    trains = run.optimizer.trains(weights)
    weights = jax.tree.map(lambda w, yes: w if yes else jax.lax.stop_gradient(w), weights, trains)
    count = run.train.num_microbatches * whole_batch.num_shards()
    key = jax.random.fold_in(jax.random.key(run.train.seed), zlib.crc32(b"forward"))
    # Where rows are whole, they need not say so: kernels then know it.
    where = {name: batch[name] for name in ("positions", "segment_ids")}
    out = model.apply(
        weights,
        batch["tokens"],
        config,
        **({} if run.data.cross_document_attention else where),
        mode="train",
        step=step,
        key=jax.random.fold_in(key, step),
        microbatch=microbatch,
        remat=run.train.rematerialisation,
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
    config: Model,
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

    if aux.exit_weights is None or aux.states is None:
        return *score(out.hidden, batch["weights"], taught), {}
    shares = aux.exit_weights * batch["weights"]
    last, nats = score(out.hidden, shares[-1], taught)
    inner = jax.lax.stop_gradient((out.hidden, head)) if learnt.exits else None
    one = lambda exit: score(model.read(weights, exit[0], config), exit[1], inner)
    earlier, earlier_nats = jax.lax.map(one, (aux.states[:-1], shares[:-1]))
    if aux.exits is None:
        return last + earlier.sum(), nats, {}
    every = jax.lax.stop_gradient(jnp.concatenate([earlier_nats, nats[None]]))
    each = config.depth.stopping_loss(aux.exits, every)
    return last + earlier.sum(), nats, {"exits": (batch["weights"] * each).sum()}
