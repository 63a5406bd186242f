"""The training step: one program over a mesh."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from recursia import accounting, fsdp, params
from recursia import batch as whole_batch
from recursia.architecture import Model
from recursia.params import Params
from recursia.train import balancing
from recursia.train.gradients import gradients
from recursia.train.objective import Batch
from recursia.train.placement import Placement, State

NO_LIMIT = np.float32(np.inf)  # of a loss


class Update(Protocol):
    """A compiled training step."""

    def __call__(
        self, state: State, batch: Batch, limit: np.float32 = NO_LIMIT
    ) -> tuple[State, dict[str, Array]]:
        """Returns the state after an update, and the metrics of the batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Trainer(Placement):
    """The functions that make a run's training steps."""

    def init(self) -> State:
        """Returns the sharded state before the first step."""
        # This program runs once: on a CPU, optimising it takes longer than running it.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        start = jax.jit(self._start, out_shardings=self.state_shardings, compiler_options=quick)
        return start(np.uint32(self.run.train.seed))  # an int would have 31 bits

    def _start(self, seed: Integer[Array, ""]) -> State:
        weights = params.init(self.specs, jax.random.key(seed))
        return State(jnp.zeros((), jnp.int32), weights, self.optimizer.init(weights))

    def abstract(self) -> State:
        """Returns the shapes, dtypes and shardings of `init()` without drawing anything."""
        shapes = jax.eval_shape(self._start, 0)
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.tree.map(place, shapes, self.state_shardings)

    def with_params(self, state: State, weights: Params) -> State:
        """Returns a first state with other parameters."""
        return dataclasses.replace(state, params=weights)

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Returns this process's rows of a batch as arrays over the mesh."""
        make = jax.make_array_from_process_local_data
        return {name: make(self.batch_sharding, rows) for name, rows in batch.items()}

    def model_at(self, step: int) -> Model:
        """Returns the model of a step: its depth, its sharing and its capacity."""
        return self._in_phase(*self._phase(step)).at_step(step)

    def in_phase(self, step: int) -> "Trainer":
        """Returns the trainer whose parameters a step updates: other phases may tie more of them.

        The step that ends training, or one after it, is in no phase: its parameters are the
        model's.
        """
        config = self._in_phase(None, self._phase(step)[1])
        return self if config == self.model else self._of(config)

    def _phase(self, step: int) -> tuple[int | None, str | None]:
        phases = self.run.train.phases()
        return next(((depth, how) for end, depth, how in phases if step < end), (None, None))

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _in_phase(self, depth: int | None, how: str | None) -> Model:
        return self.model.in_phase(depth, how)

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _of(self, config: Model) -> "Trainer":
        return dataclasses.replace(self, model=config)

    def step_function(self, step: int) -> Update:
        """Returns the compiled `state, metrics = f(state, batch, limit)`; the state is donated.

        Steps whose model is the same share one program. The limit of the loss, infinity if none is
        given, counts where the policy is to skip spikes.
        """
        return self.in_phase(step)._compiled(self.model_at(step))

    @functools.lru_cache  # noqa: B019 - lives as long as the run
    def _compiled(self, config: Model) -> Update:
        jitted, skips = self._jitted(config), self.run.divergence.policy == "skip"

        def run(
            state: State, batch: Batch, limit: np.float32 = NO_LIMIT
        ) -> tuple[State, dict[str, Array]]:
            with jax.set_mesh(self.mesh):
                teacher = self.teacher and self.teacher.params
                return jitted(state, batch, teacher, limit if skips else None)

        return run

    def _jitted_at(self, step: int) -> jax.stages.Wrapped:
        return self.in_phase(step)._jitted(self.model_at(step))

    def _jitted(self, config: Model) -> jax.stages.Wrapped:
        return jax.jit(
            functools.partial(train_step, self, config),
            in_shardings=(self.state_shardings, self.batch_sharding, None, None),
            out_shardings=(self.state_shardings, self.replicated),
            donate_argnums=0,
            compiler_options=self._compiler_options,
        )

    @property
    def _compiler_options(self) -> dict[str, bool] | None:
        is_gpu = self.mesh.devices.flat[0].platform in ("gpu", "cuda")
        is_chosen = is_gpu and self.run.train.deterministic
        return {"xla_gpu_exclude_nondeterministic_ops": True} if is_chosen else None

    def flops(self, config: Model) -> int | float:
        """Returns the training FLOPs of a sequence, those of the teacher included.

        Args:
          config: the model at a step.
        """
        length, how = self.run.train.seq_len, self.run.distill
        own = accounting.training_flops(config, length)
        if self.teacher is None:
            return own
        return own + accounting.teacher_flops(config, self.teacher.model, length, how.weight > 0)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a step's batch."""
        shape = (self.run.train.batch_size, self.run.train.seq_len)
        array = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding)
        ints = ("tokens", "targets", "positions", "segment_ids")
        return {**dict.fromkeys(ints, array(jnp.int32)), "weights": array(jnp.float32)}

    def trace(self, step: int = 0) -> jax.stages.Traced:
        """Returns the traced program of a step; the mesh's devices may belong to another host."""
        own, batch = self.in_phase(step), self.abstract_batch()
        state = own.abstract()
        with jax.set_mesh(self.mesh):
            skips = self.run.divergence.policy == "skip"
            return self._jitted_at(step).trace(
                state, batch, self.teacher and self.teacher.params, NO_LIMIT if skips else None
            )

    def lower(self, step: int = 0) -> jax.stages.Lowered:
        """Returns the lowered program of a step."""
        traced = self.trace(step)
        with jax.set_mesh(self.mesh):
            return traced.lower()


def train_step(
    trainer: Trainer,
    config: Model,
    state: State,
    batch: Batch,
    teacher_params: Params | None = None,
    limit: Float[Array, ""] | None = None,
    first: Int[Array, ""] | None = None,
) -> tuple[State, dict[str, Array]]:
    """Returns the state after one update, and the metrics of the batch.

    Args:
      trainer: of the run.
      config: the model at this step.
      state: before the update.
      batch: its rows.
      teacher_params: parameters of the trainer's teacher. They are arguments because the compiler
        would embed a closed-over array in the program as a constant.
      limit: a larger loss, or one that is not finite, leaves the state as it is but for its counts
        of steps; None makes every update.
      first: the number of its first microbatch, on which random draws depend; None is 0.
    """
    by_rows = jax.tree.map(lambda where: fsdp.by_rows(where.spec), trainer.state_shardings)
    rows, replicated = fsdp.by_rows(trainer.batch_sharding.spec), PartitionSpec()
    taught = jax.tree.map(lambda where: fsdp.by_rows(where.spec), trainer.teacher_shardings)
    grads, metrics = jax.shard_map(
        functools.partial(gradients, trainer, config),
        in_specs=(by_rows.params, rows, replicated, taught, replicated),
        out_specs=(by_rows.params, replicated),
        axis_names=set(whole_batch.AXES) | {a for a, n in trainer.mesh.shape.items() if n == 1},
        check_vma=False,
    )(state.params, batch, state.step, teacher_params, first)
    updates, opt_state = trainer.optimizer.update(grads, state.opt_state, state.params)
    metrics = metrics | {
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": trainer.run.optimizer.learning_rate * trainer.factor(state.step),
    }
    weights: Any = optax.apply_updates(state.params, updates)  # a dict, typed by optax as any tree
    weights = balancing.after_step(weights, metrics, config, trainer.run.optimizer.trains(weights))
    if limit is not None:
        loss, norm = metrics["loss"], metrics["gradient_norm"]
        is_sound = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= limit)
        is_count = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
        choose = lambda new, old: new if is_count(new) else jnp.where(is_sound, new, old)
        before = (state.params, state.opt_state)
        weights, opt_state = jax.tree.map(choose, (weights, opt_state), before)
    return State(state.step + 1, weights, opt_state), metrics
