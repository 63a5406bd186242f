"""Routing traces: which experts each token takes in each step of the core, and how clearly."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from recursia import safely
from recursia.layers.balance import Usage
from recursia.layers.branch import Report


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The choices of one router, by step of the core; `N` are its heads, or passes, or one.

    Steps are in the order in which a token takes them.

    Attributes:
      taken: 1 for an expert that the token takes, more where a policy adds the uses of a step.
      margin: logit of the weakest expert that the token takes minus that of the strongest that it
        does not; NaN where it takes none or all.
      steps: the number of each step, counted recursion by recursion.
    """

    taken: UInt8[np.ndarray, "S B T N E"]
    margin: Float[np.ndarray, "S B T N"]
    steps: Int[np.ndarray, "S"]

    @property
    def is_there(self) -> Bool[np.ndarray, "S B T"]:
        """Whether a token takes a step."""
        return self.taken.max((-2, -1)) > 0

    @property
    def num_experts(self) -> int:
        """Experts that a token chooses among."""
        return self.taken.shape[-1]

    @property
    def top_k(self) -> int:
        """Experts that a token takes."""
        return int((self.taken > 0).sum(-1).max(initial=0))

    @property
    def is_choice(self) -> bool:
        """Whether some token leaves an expert."""
        return self.top_k < self.num_experts

    @property
    def is_by_step(self) -> bool:
        """Whether each step is told apart."""
        return bool(self.taken.max(initial=0) <= 1)

    def index(self) -> Int[np.ndarray, "B T S N k"]:
        """Returns the experts of each token in ascending order, -1 where it takes none."""
        first = np.argsort(self.taken == 0, axis=-1, kind="stable")[..., : self.top_k]
        is_taken = np.take_along_axis(self.taken, first, -1) > 0
        return np.where(is_taken, first, -1).transpose(1, 2, 0, 3, 4).astype(np.int32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what is written of each token: its experts, and their margin, by step."""
        return {"experts": self.index(), "margin": self.margin.transpose(1, 2, 0, 3)}


def of_report(report: Report) -> dict[str, dict[str, Array]]:
    """Returns what makes a trace of each router in a report by token, by the name of its slot."""
    is_usage = lambda x: isinstance(x, Usage)
    leaves = jax.tree_util.tree_flatten_with_path(report, is_leaf=is_usage)[0]
    name = lambda path: " ".join(str(getattr(key, "key", key)) for key in path)
    return {name(path): _traced(leaf) for path, leaf in leaves if is_usage(leaf)}


def _traced(usage: Usage) -> dict[str, Array]:
    def heads(x: Array) -> Array:  # [R K B T *N E] to [S B T N E]
        x = x.reshape(-1, *x.shape[2:])
        return x.reshape(*x.shape[:3], -1, x.shape[-1])

    taken = heads(usage.taken)
    logits = jnp.log(jnp.maximum(heads(usage.probability), jnp.finfo(jnp.float32).tiny))
    is_taken, far = taken > 0, jnp.inf
    weakest = jnp.where(is_taken, logits, far).min(-1)
    strongest = jnp.where(is_taken, -far, logits).max(-1)
    margin = weakest - strongest
    margin = jnp.where(jnp.isfinite(margin), margin, jnp.nan)
    return {"taken": taken.round().astype(jnp.uint8), "margin": margin}


def joined(
    batches: Sequence[Mapping[str, Mapping[str, Any]]], steps: Int[np.ndarray, "S"]
) -> dict[str, Trace]:
    """Returns the traces of batches of rows.

    Args:
      batches: what `of_report` gave of each.
      steps: `Schedule.steps`, in the order of the walk.
    """
    rows = lambda slot, name: np.concatenate([batch[slot][name] for batch in batches], 1)[steps]
    return {slot: Trace(rows(slot, "taken"), rows(slot, "margin"), steps) for slot in batches[0]}


def write(
    path: pathlib.Path,
    tokens: Int[np.ndarray, "B T"],
    depth_used: Int[np.ndarray, "B T"],
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Writes a new `.npz`: `tokens`, `depth_used`, and `SLOT/NAME` of what is found of each slot.

    `SLOT/experts` [B T S N k] are the experts of a token by step and head, ascending, -1 where it
    takes none; `SLOT/margin` is [B T S N]. `SLOT/values` [B T S N k] are the values of a memory
    that it reads and `SLOT/shares` their shares, the largest first, 0 where it takes no step.
    Padding has `depth_used` 0.
    """
    arrays = {"tokens": tokens, "depth_used": depth_used}
    for slot, own in found.items():
        arrays |= {f"{slot}/{name}": array for name, array in own.items()}
    with safely.file(path, "choices") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
