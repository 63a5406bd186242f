"""A trained model at other depths, in other modes, with other capacities."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recursia import accounting, config, model
from recursia.architecture import Model
from recursia.depth.policy import Mode
from recursia.errors import ConfigError
from recursia.workdir.trained import Trained

Capacity = tuple[float, ...]
Row = dict[str, Any]  # of a table: what tells a variant from others, and its scores
_FIRST = ("acc", "acc_norm", "exact_match", "perplexity", "word_perplexity", "bits_per_byte")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of reading a trained model.

    Attributes:
      depth: recursions that are walked.
      mode: "eval" as published, "causal" as decoding decides.
      is_beyond: whether the depth is larger than the trained one.
      capacity: share of the tokens that each recursion keeps, where it is other than in training.
      model: the model at that depth.
      params: of it.
      cache_bytes_per_token: keys and values that decoding keeps, per token of a trained length.
    """

    depth: int
    mode: Mode
    is_beyond: bool
    capacity: Capacity | None
    model: Model
    params: Any
    cache_bytes_per_token: float

    @property
    def names(self) -> dict[str, Any]:
        """What tells it from others, as a row of a table has it."""
        capacity = {} if self.capacity is None else {"capacity": list(self.capacity)}
        names = {"depth": self.depth, "mode": self.mode, "is_beyond": self.is_beyond}
        return {**names, **capacity}


def title(row: Mapping[str, Any]) -> str:
    """Returns in words which variant a row of a table is of."""
    capacity = ",".join(f"{share:.3g}" for share in row.get("capacity", ()))
    beyond = " (beyond)" if row["is_beyond"] else ""
    return f"depth {row['depth']}{beyond}, {row['mode']}{capacity and f', capacity {capacity}'}"


def main_metric(row: Mapping[str, Any]) -> str:
    """Returns the metric that says most of a task."""
    metrics = row["metrics"]
    return next((name for name in _FIRST if name in metrics), next(iter(metrics), ""))


def add_gaps(rows: Sequence[Row], keys: tuple[str, ...], value: Callable[[Row], float]) -> None:
    """Adds `causal_gap` to causal rows: how much more they have than the published ones.

    Args:
      rows: of a table.
      keys: columns in which both rows are alike.
      value: of a row.
    """
    alike = lambda row: tuple(row[key] for key in keys)
    is_trained = lambda row, mode: row["mode"] == mode and "capacity" not in row
    published = {alike(row): value(row) for row in rows if is_trained(row, "eval")}
    for row in rows:
        if is_trained(row, "causal") and alike(row) in published:
            row["causal_gap"] = value(row) - published[alike(row)]


def of(
    trained: Trained,
    depths: tuple[int, ...],
    modes: tuple[Mode, ...],
    capacities: tuple[Capacity, ...] = (),
) -> tuple[list[Variant], dict[int, str]]:
    """Returns the variants, and why there are none of some depths.

    Args:
      trained: the model.
      depths: recursions to walk; none takes the trained depth.
      modes: none takes both where they differ.
      capacities: of the published mode, besides the trained ones; each has a share for every
        recursion of the trained depth.

    Raises:
      ConfigError: if no depth can be walked, or the depth policy has no capacity.
    """
    ours = trained.model
    depths = depths or (ours.schedule.num_recursions,)
    found, missing = [], {}
    for capacity in (None, *dict.fromkeys(capacities)):
        whole = ours if capacity is None else _with_capacity(trained, capacity)
        for depth in dict.fromkeys(depths):
            try:
                at_depth, params = model.at_depth(whole, trained.params, depth)
            except ValueError as error:
                missing[depth] = str(error)
                continue
            cache = accounting.cache_bytes_per_token(at_depth, trained.run.train.seq_len)
            for mode in modes or ours.modes:
                if capacity is None or mode == "eval":
                    is_beyond = depth > ours.schedule.num_recursions
                    found.append(Variant(depth, mode, is_beyond, capacity, at_depth, params, cache))
    if not found:
        raise ConfigError(f"--depths: {'; '.join(dict.fromkeys(missing.values()))}")
    return found, missing


def _with_capacity(trained: Trained, capacity: Capacity) -> Model:
    """Returns the trained model with other capacities."""
    typed = ",".join(str(share) for share in capacity)
    try:
        run = config.override(trained.run, {"depth.capacity": typed})
    except ConfigError as error:
        raise ConfigError(f"--capacity={typed}: {error}") from None
    return dataclasses.replace(trained.model, depth=run.model.depth)
