"""Training steps of replicas: each replica's own, and the exchange of the fragment that is due.

A step of the replicas is a `shard_map` over the mesh axis of replicas, in which each of them takes
the step of `recursia.train.step` on its own rows: nothing is exchanged in it. Devices that hold
several replicas take their steps one after another. With a delay, a fragment is gathered and
applied in the program of the step after which it arrives: the gather needs nothing that the step
computes, so that it may overlap. Without one, it is a program of its own after the step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from recursia import fragments, settings
from recursia.architecture import Model
from recursia.params import Params
from recursia.sharding import REPLICA
from recursia.train import distill
from recursia.train.objective import Batch
from recursia.train.outer import Exchanges, Outer
from recursia.train.placement import State
from recursia.train.step import NO_LIMIT, Trainer, Update, train_step

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ReplicaTrainer(Trainer):
    """The trainer of a run with replicas; `State.params` are the outer parameters."""

    @functools.cached_property
    def one(self) -> Trainer:
        """The trainer of each replica."""
        return Trainer(self.run, self.model, self.mesh, self.teacher)

    @functools.cached_property
    def exchanges(self) -> Exchanges:
        """How fragments are exchanged."""
        how, trains = self.run.replicas, self.run.optimizer.trains(self.specs)
        parts = fragments.fragments(self.specs, trains, how.num_fragments)
        return Exchanges(how, parts, self.mesh, self.run.mesh.rules)

    @functools.cached_property
    def state_shardings(self) -> State:
        """The sharding of every array of the state; replicas are split over their mesh axis."""
        alone, shapes = self.one.state_shardings, jax.eval_shape(self._start, 0).opt_state
        apart = lambda where: NamedSharding(self.mesh, PartitionSpec(REPLICA, *where.spec))
        flight = shapes.flight
        if flight is not None:
            scale = jax.tree.map(lambda _: apart(self.replicated), flight.scale)
            flight = flight.replace(values=jax.tree.map(apart, alone.params), scale=scale)
        outer = Outer(
            replicas=jax.tree.map(apart, alone.params),
            inner=jax.tree.map(apart, alone.opt_state),
            momentum=alone.params,
            flight=flight,
        )
        return State(self.replicated, alone.params, outer)

    def _start(self, seed: Integer[Array, ""]) -> State:
        alone = self.one._start(seed)
        replicas, inner = map(self._copies, (alone.params, alone.opt_state))
        momentum = jax.tree.map(jnp.zeros_like, alone.params)
        outer = Outer(replicas, inner, momentum, self.exchanges.flight(replicas))
        return State(alone.step, alone.params, outer)

    def _copies(self, tree: Any) -> Any:
        """Returns a tree of the same arrays for every replica."""
        count = self.run.replicas.count
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)

    def with_params(self, state: State, weights: Params) -> State:
        """Returns a first state with other parameters, from which every replica starts."""
        where = self.state_shardings.opt_state.replicas
        replicas = jax.jit(self._copies, out_shardings=where)(weights)
        return State(state.step, weights, state.opt_state.replace(replicas=replicas))

    def step_function(self, step: int) -> Update:
        """Returns as `Trainer.step_function`, with the exchange that is due after the step.

        Steps of the same model that exchange the same share programs.
        """
        how = self.run.replicas
        leaving, arriving = how.leaving(step + 1), how.arriving(step + 1)
        return self._moving(self.model_at(step), leaving, arriving if how.delay else None)

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _moving(self, config: Model, leaving: int | None, arriving: int | None) -> Update:
        steps, skips = self._jitted(config, arriving), self.run.divergence.policy == "skip"

        def run(
            state: State, batch: Batch, limit: np.float32 = NO_LIMIT
        ) -> tuple[State, dict[str, Array]]:
            with jax.set_mesh(self.mesh):
                teacher = self.teacher and self.teacher.params
                state, metrics = steps(state, batch, teacher, limit if skips else None)
                if leaving is not None:
                    state = self.exchange(leaving)(state)
                return state, self._averaged(metrics, state.step)

        return run

    def _jitted_at(self, step: int) -> jax.stages.Wrapped:
        how = self.run.replicas
        return self._jitted(self.model_at(step), how.arriving(step + 1) if how.delay else None)

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _jitted(self, config: Model, arriving: int | None = None) -> jax.stages.Wrapped:
        return jax.jit(
            functools.partial(replicas_step, self, config, arriving),
            in_shardings=(self.state_shardings, self.batch_sharding, None, None),
            out_shardings=(self.state_shardings, self._by_replica),
            donate_argnums=0,
            compiler_options=self._compiler_options,
        )

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def exchange(self, number: int) -> jax.stages.Wrapped:
        """Returns the compiled function from a state to that after a fragment has left.

        With a delay it is then in flight, and nothing is exchanged; without one it is applied.
        """
        made = self.exchanges

        def run(state: State) -> State:
            if self.run.replicas.delay:
                outer = made.departed(number, state.params, state.opt_state)
                return State(state.step, state.params, outer)
            sent = made.left(number, state.params, state.opt_state)
            return State(state.step, *made.arrived(number, state.params, state.opt_state, sent))

        where = self.state_shardings
        return jax.jit(run, in_shardings=(where,), out_shardings=where, donate_argnums=0)

    @property
    def _by_replica(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(REPLICA))

    @functools.cached_property
    def _averaged(self) -> Callable[[Metrics, Array], Metrics]:
        """The compiled mean of the metrics over replicas, with the bytes that one has sent."""

        def run(metrics: Metrics, step: Int[Array, ""]) -> Metrics:
            means = {name: x.mean(0) for name, x in metrics.items()}
            return means | {"exchanged_bytes": self.exchanged_bytes(step)}

        return jax.jit(run, out_shardings=self.replicated)

    def exchanged_bytes(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the bytes that one replica has sent to the others after a step."""
        how, total = self.run.replicas, jnp.float32(0)
        for number, part in enumerate(self.exchanges.fragments):
            since = step - how.offset(number) - how.delay
            times = jnp.maximum(since // how.every_steps + 1, 0)
            total += times * np.float32((how.count - 1) * how.sent(*part.size))
        return total


def replicas_step(
    trainer: ReplicaTrainer,
    config: Model,
    arriving: int | None,
    state: State,
    batch: Batch,
    teacher_params: Params | None = None,
    limit: Float[Array, ""] | None = None,
) -> tuple[State, Metrics]:
    """Returns the state after one step of every replica, and the metrics of each.

    Args:
      trainer: of the run.
      config: the model at this step.
      arriving: the fragment that is applied after it, if any.
      state: before the step.
      batch: its rows, those of one replica after another.
      teacher_params: as of `train_step`.
      limit: as of `train_step`, of each replica's own loss: it leaves that replica as it is.
    """
    outer, how = state.opt_state, trainer.run.replicas
    here = functools.partial(_own_steps, trainer, config)
    ours, apart = PartitionSpec(), PartitionSpec(REPLICA)
    if trainer.mesh.shape[REPLICA] > 1:
        here = jax.shard_map(
            here,
            in_specs=(ours, apart, apart, apart, apart, ours, ours),
            out_specs=apart,
            axis_names={REPLICA},
            check_vma=False,
        )
    numbers = jnp.arange(how.count)
    every = (outer.replicas, outer.inner, batch, numbers)
    replicas, inner, metrics = here(state.step, *every, teacher_params, limit)
    after, weights = dataclasses.replace(outer, replicas=replicas, inner=inner), state.params
    if arriving is not None:
        sent = trainer.exchanges.in_flight(arriving, outer.flight)
        weights, after = trainer.exchanges.arrived(arriving, weights, after, sent)
    return State(state.step + 1, weights, after), metrics


def _own_steps(
    trainer: ReplicaTrainer,
    config: Model,
    step: Array,
    replicas: Params,
    inner: Any,
    batch: Batch,
    numbers: Array,
    taught: Params | None,
    limit: Array | None,
) -> tuple[Params, Any, Metrics]:
    """Returns the replicas of a device, their optimizers' states and metrics after a step.

    Args:
      trainer: of the run.
      config: the model at this step.
      step: before the update.
      replicas: parameters of each.
      inner: the state of each one's optimizer.
      batch: the rows of all of them.
      numbers: of the replicas, among all.
      taught: parameters of the trainer's teacher.
      limit: as of `train_step`.
    """
    count = len(numbers)
    rows = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)

    def one(each: tuple[Params, Any, Batch, Array]) -> tuple[Params, Any, Metrics]:
        weights, opt_state, rows, number = each
        first = number * trainer.run.train.num_microbatches
        before = State(step, weights, opt_state)
        after, metrics = train_step(trainer.one, config, before, rows, taught, limit, first)
        return after.params, after.opt_state, metrics

    every = (replicas, inner, rows, numbers)
    if count > 1:
        return jax.lax.map(one, every)
    alone = one(jax.tree.map(lambda x: x[0], every))
    return jax.tree.map(lambda x: x[None], alone)


def trainer_of(
    run: settings.Run, config: Model, mesh: Mesh, teacher: distill.Teacher | None = None
) -> Trainer:
    """Returns the trainer of a run, which may have replicas.

    Args:
      run: the settings.
      config: the model, at full depth and capacity.
      mesh: the devices.
      teacher: the model to distil from, if any.

    Raises:
      ConfigError: if there are more fragments than fit the model.
    """
    if not run.replicas.count:
        return Trainer(run, config, mesh, teacher)
    made = ReplicaTrainer(run, config, mesh, teacher)
    _ = made.exchanges
    return made
