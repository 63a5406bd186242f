"""What a trained model is worth on text and tasks, by depth, mode and capacity: one result."""

import importlib.metadata
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from recursia import config, console
from recursia.depth.policy import Mode
from recursia.errors import DataError
from recursia.evaluate import depths as texts
from recursia.evaluate import split, variants
from recursia.evaluate.variants import Capacity, Variant
from recursia.workdir import trained as runs
from recursia.workdir.trained import Trained

Table = list[dict[str, Any]]


class Suite(Protocol):
    """Tasks, whatever runs them."""

    def scores(self, trained: Trained, variant: Variant, say: Any) -> Table:
        """Returns a row for each task and group."""
        ...

    def described(self) -> dict[str, Any]:
        """Returns what it takes to run the same again."""
        ...


def evaluate(
    workdir: pathlib.Path,
    *,
    step: int | None,
    text: str | None,
    depths: tuple[int, ...],
    modes: tuple[Mode, ...],
    capacities: tuple[Capacity, ...],
    num_batches: int,
    has_baselines: bool,
    has_routing: bool,
    choices: pathlib.Path | None,
    overrides: Mapping[str, str],
    suite: Suite | None,
) -> dict[str, Any]:
    """Returns scores of a checkpoint.

    Args:
      workdir: the run's directory.
      step: updates made; None takes the latest.
      text: a file to score; None reads the run's validation split, if there is one.
      depths: recursions to walk; none takes the trained depth.
      modes: "eval", "causal"; none takes both where they differ.
      capacities: besides the trained ones, see `variants.of`.
      num_batches: of each directory or file, to read; 0 reads all.
      has_baselines: whether n-gram models of the training split, gzip and xz are scored too.
      has_routing: whether statistics of the choices of experts and recursions are given too.
      choices: a new `.npz` for the choices of every token, with `has_routing`; None writes none.
      overrides: fields of the depth policy that are to be other than in training, as typed.
      suite: tasks; None scores text alone.

    Returns:
      `workdir`, `step`, `trained_depth`, `versions` and `config`; what `depths.evaluate` gives of
      text; with tasks, their rows under `tasks` and what they were under `suite`; and where the
      model cannot walk a depth `missing`: why, by depth.

    Raises:
      ConfigError: if no depth can be walked.
      DataError: if there is nothing to score.
    """
    with console.doing(f"loading {workdir}"):
        trained = runs.load(workdir, step, overrides)
    found, missing = variants.of(trained, depths, modes, capacities)
    result: dict[str, Any] = {
        "workdir": str(workdir),
        "step": trained.step,
        "trained_depth": trained.model.schedule.num_recursions,
    }
    if text or suite is None or has_routing or _has_text(trained, workdir):
        how = {"text": text, "num_batches": num_batches, "has_baselines": has_baselines}
        how |= {"has_routing": has_routing, "choices": choices}
        result |= texts.evaluate(trained, workdir, found, **how)
    if suite is not None:
        result |= {"tasks": _on_tasks(trained, found, suite), "suite": suite.described()}
    if missing:
        result["missing"] = missing
    versions = {name: importlib.metadata.version(name) for name in ("recursia", "jax", "jaxlib")}
    return result | {"versions": versions, "config": config.to_dict(trained.run)}


def _on_tasks(trained: Trained, found: Sequence[Variant], suite: Suite) -> Table:
    """Returns the rows of all variants; those in causal mode say how far they are from published.

    What is said of one variant and holds for all is said once.
    """
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            console.say(line)

    table: Table = []
    for variant in found:
        rows = suite.scores(trained, variant, say)
        for row in rows:
            cache = variant.cache_bytes_per_token
            table.append({**row, "cache_bytes_per_token": cache})
    value = lambda row: row["metrics"].get(variants.main_metric(row), 0.0)
    variants.add_gaps(table, ("task", "depth"), value)
    return table


def _has_text(trained: Trained, workdir: pathlib.Path) -> bool:
    try:
        return bool(split.of_run(trained, workdir))
    except DataError:
        return False
