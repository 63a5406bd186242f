"""Where a run's parameters, optimizer state and batches lie: their specs and shardings."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recursia import learning_rate, model, params, settings, sharding
from recursia.architecture import Model
from recursia.params import Leaf, Params
from recursia.train import distill


@struct.dataclass
class State:
    """What training carries from step to step, and a checkpoint holds."""

    step: Leaf  # []
    params: Params
    opt_state: Any  # the states of optax, a tree without a type of its own


@dataclasses.dataclass(frozen=True)
class Placement:
    """A run's model, optimizer and teacher, and how a mesh divides them.

    Attributes:
      run: the settings.
      model: the model, at full depth and capacity.
      mesh: the devices.
      teacher: the model to distil from, if any.
    """

    run: settings.Run
    model: Model
    mesh: Mesh
    teacher: distill.Teacher | None = None

    @functools.cached_property
    def specs(self) -> Params:
        """The parameters, as specs."""
        return model.specs(self.model)

    @functools.cached_property
    def teacher_specs(self) -> Params | None:
        """The parameters of the teacher, as specs."""
        if self.teacher is None:
            return None
        return sharding.fitted(model.specs(self.teacher.model), self.mesh, self.run.mesh.rules)

    @functools.cached_property
    def teacher_shardings(self) -> Params | None:
        """The sharding of every parameter of the teacher."""
        return sharding.shardings(self.teacher_specs, self.mesh, self.run.mesh.rules)

    @functools.cached_property
    def factor(self) -> optax.Schedule:
        """The factor of the peak learning rate, by step."""
        return learning_rate.factor(self.run.schedule, self.run.train.num_steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Clipping, the update rule, weight decay and the learning rate."""
        decay_start = self.run.schedule.decay_start(self.run.train.num_steps)
        return self.run.optimizer.transform(self.specs, self.factor, decay_start)

    @functools.cached_property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch: rows are split over the mesh axes of `batch.AXES`."""
        split = sharding.partition(("batch", None), self.run.mesh.rules)
        return NamedSharding(self.mesh, split)

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def state_shardings(self) -> State:
        """The sharding of every array of the state; moments are sharded as their parameters."""
        where = sharding.shardings(self.specs, self.mesh, self.run.mesh.rules)
        is_masked = lambda x: isinstance(x, optax.MaskedNode)  # a parameter of another rule
        moments = jax.eval_shape(self.optimizer.init, params.abstract(self.specs))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda x, place: x if is_masked(x) else _leading(place, x.ndim),
            moments,
            where,
            transform_non_params=lambda _: self.replicated,
            is_leaf=is_masked,
        )
        return State(self.replicated, where, moments)


def _leading(place: NamedSharding, ndim: int) -> NamedSharding:
    """Returns the sharding of an array over the leading axes of a parameter."""
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[:ndim]))
