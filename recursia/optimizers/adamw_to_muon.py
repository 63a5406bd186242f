"""AdamW until the learning rate decays, and Muon from then on."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from recursia.optimizers.muon import Muon
from recursia.optimizers.optimizer import decaying_first
from recursia.params import Leaf, Spec


class Handed(NamedTuple):
    """The state of both rules in the place of one: Adam's.

    Attributes:
      step: number of updates.
      is_muon: whether the mean of matrices holds Muon's momentum.
      adam: Adam's state; its count is of the updates since it began.
    """

    step: Leaf  # []
    is_muon: Leaf  # []; no number, which a skipped update would raise
    adam: Any  # optax.ScaleByAdamState


@dataclasses.dataclass(frozen=True)
class AdamWToMuon(Muon):
    """AdamW in warm-up and stable phase, Muon in the decay (Xmodel-2.5, 2511.19496).

    It switches at the step at which the decay of the schedule "wsd" begins. One program holds both
    rules. What a matrix holds is Adam's two moments: Muon's momentum takes the place of the mean,
    and the mean square lies idle from the switch on.

    Attributes:
      hand_over: what both rules of the decay begin with: "fresh", as published, is nothing, not
        for the parameters that stay with Adam either; "adam_mean", ours, keeps Adam's state, and
        Muon's momentum begins as Adam's mean / (1 - momentum), the weight of a long sum.
    """

    hand_over: Literal["fresh", "adam_mean"] = "fresh"

    def conflict(self, schedule: str) -> str:
        """Returns why a kind of schedule does not fit; "" if it does."""
        if schedule == "wsd":
            return ""
        return (
            f"'adamw_to_muon' switches where the decay of schedule.kind 'wsd' begins, and the "
            f"schedule is {schedule!r}; take 'wsd', or optimizer.kind 'adamw' or 'muon'"
        )

    def phases(self, decay_start: int, num_steps: int) -> str:
        """Returns the step from which matrices take Muon."""
        if decay_start >= num_steps:
            return "AdamW in all steps: the schedule has no decay, where Muon would begin"
        return f"AdamW in steps 1 to {decay_start:,}, Muon from there to {num_steps:,}"

    def moments(self, spec: Spec) -> int:
        """Returns 2, Adam's; Muon's momentum is held in one of them."""
        return 2

    def rule(
        self,
        specs: PyTree[Spec],
        decayed: PyTree[float],
        rate: optax.Schedule,
        decay_start: int,
    ) -> optax.GradientTransformation:
        """Returns a rule that decays parameters before the step, in both phases."""
        both = self._both(specs, decay_start)
        return optax.chain(both, decaying_first(self.weight_decay, decayed, rate))

    def _both(self, specs: PyTree[Spec], decay_start: int) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        chosen = lambda matrices, others: jax.tree.map(
            lambda spec, a, b: b if spec.matrix is None else a, specs, matrices, others
        )

        def init(params: optax.Params) -> Handed:
            return Handed(jnp.zeros((), jnp.int32), jnp.zeros((), bool), adam.init(params))

        def by_adam(grads: PyTree, state: Handed) -> tuple[PyTree, Any]:
            return adam.update(grads, begun(state, state.is_muon, 1 - self.momentum))

        def by_muon(grads: PyTree, state: Handed) -> tuple[PyTree, Any]:
            held = begun(state, ~state.is_muon, 1 / (1 - self.momentum))
            new: Any = adam.update(grads, held)[1]
            moved = self._with_muon(new)  # of what is no matrix
            further = lambda grad, total: grad + self.momentum * total
            momentum = jax.tree.map(further, grads, held.mu)
            ahead = jax.tree.map(further, grads, momentum) if self.nesterov else momentum
            moved = chosen(jax.tree.map(self._update, specs, ahead), moved)
            kept = {"mu": chosen(momentum, new.mu), "nu": chosen(held.nu, new.nu)}
            return moved, new._replace(**kept)

        def begun(state: Handed, is_new: Array, factor: float) -> Any:
            """Returns Adam's state, handed over if the other rule made the last step."""
            if self.hand_over == "fresh":
                return jax.tree.map(lambda x: jnp.where(is_new, 0, x), state.adam)
            handed = jax.tree.map(lambda x: jnp.where(is_new, factor, 1.0) * x, state.adam.mu)
            return state.adam._replace(mu=chosen(handed, state.adam.mu))

        def update(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            assert isinstance(state, Handed)
            is_muon = state.step >= decay_start
            moved, held = jax.lax.cond(is_muon, by_muon, by_adam, updates, state)
            return moved, Handed(state.step + 1, is_muon, held)

        return optax.GradientTransformation(init, update)

    def _with_muon(self, adam: Any) -> PyTree[Array]:
        """Returns Adam's step as code of Muon has it: eps is added to the root that grows to it."""
        size = jnp.sqrt(1 - self.b2**adam.count) / (1 - self.b1**adam.count)
        return jax.tree.map(lambda m, s: size * m / (jnp.sqrt(s) + self.eps), adam.mu, adam.nu)
