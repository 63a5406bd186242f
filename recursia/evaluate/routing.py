"""How a trained model routes a text: statistics of its choices of experts and of depth."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia import distributed, model, scores, sharding
from recursia.architecture import Model
from recursia.depth.policy import Mode
from recursia.errors import ConfigError
from recursia.evaluate import memories, probes, traces
from recursia.evaluate.memories import Memory
from recursia.evaluate.variants import Variant
from recursia.workdir.trained import Trained

TOKENS = 1 << 14  # that are read at most, in whole batches


def evaluate(
    trained: Trained,
    variants: Sequence[Variant],
    paths: tuple[str, ...],
    *,
    num_batches: int,
    choices: pathlib.Path | None,
) -> dict[str, Any]:
    """Returns statistics of how a model routes the first tokens of a text; see `probes`.

    Args:
      trained: the model.
      variants: how it may be read; it is read at the trained depth, or else as the first says.
      paths: directories whose validation split is read, the first one alone.
      num_batches: to read; 0 reads `TOKENS`, which are also the most.
      choices: a new `.npz` for every token's choices; None writes none.

    Returns:
      `tokens`, `depth`, `mode`; `routers`, the statistics of each by its slot; `memories`, those of
      each memory that is read, if there are any; and `recursions`, those of depth, where tokens
      take different numbers.

    Raises:
      ConfigError: if the model leaves no token a choice, or does not tell its steps apart.
    """
    full_depth = trained.model.schedule.num_recursions
    variant = next((v for v in variants if v.depth == full_depth), variants[0])
    run, mesh, rules = trained.run, trained.mesh, trained.run.mesh.rules
    most = max(1, TOKENS // (run.train.batch_size * run.train.seq_len))
    batches = scores.validation_batches(run, paths[:1], min(num_batches or most, most), mesh)
    read = _reader(variant.model, variant.mode, mesh, rules)
    rows = NamedSharding(mesh, sharding.partition(("batch", None), rules))
    put = functools.partial(jax.make_array_from_process_local_data, rows)
    with jax.set_mesh(mesh):
        found = [
            jax.device_get(read(variant.params, {name: put(x) for name, x in batch.items()}))
            for batch in batches
        ]
    joined = lambda name, axis: np.concatenate([batch[name] for batch in found], axis)
    steps = variant.model.schedule.steps
    routers = traces.joined([batch["routers"] for batch in found], steps)
    routers = {slot: trace for slot, trace in routers.items() if trace.is_choice}
    read_from = memories.joined([batch["memories"] for batch in found], steps)
    used = joined("depth_used", 0)
    decided = None if found[0]["scores"] is None else joined("scores", 1)
    result = _statistics(variant, routers, read_from, used, decided)
    if choices is not None and distributed.is_first():
        kept = {slot: each.arrays() for slot, each in {**routers, **read_from}.items()}
        traces.write(choices, joined("tokens", 0), used, kept)
    return result


def _statistics(
    variant: Variant,
    routers: dict[str, traces.Trace],
    read_from: dict[str, Memory],
    used: np.ndarray,
    decided: np.ndarray | None,
) -> dict[str, Any]:
    real = used[used > 0]
    has_depths = bool(len(real)) and real.min() < real.max()
    both: dict[str, traces.Trace | Memory] = {**routers, **read_from}
    if not both and not has_depths:
        raise ConfigError(
            f"--routing: in mode {variant.mode} at depth {variant.depth} the model leaves its "
            "tokens no choice of experts or recursions; leave it out"
        )
    if summed := [slot for slot, trace in both.items() if not trace.is_by_step]:
        raise ConfigError(
            f"--routing: the depth policy adds up the choices of {summed[0]} in several uses of a "
            "step, so that none is told apart; leave it out"
        )
    result: dict[str, Any] = {"tokens": len(real), "depth": variant.depth, "mode": variant.mode}
    result["routers"] = {slot: probes.of_router(trace) for slot, trace in routers.items()}
    if read_from:
        result["memories"] = {slot: memories.statistics(each) for slot, each in read_from.items()}
    if has_depths:
        count = variant.model.schedule.num_recursions
        result["recursions"] = probes.of_depth(used, decided, count)
    return result


@functools.lru_cache(maxsize=4)
def _reader(config: Model, mode: Mode, mesh: Mesh, rules: sharding.Rules) -> Any:
    """Returns a compiled function from parameters and a batch to what each token took."""

    def read(params: model.Params, batch: dict[str, Array]) -> dict[str, Any]:
        packing: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        tokens = batch["tokens"]
        out = model.apply(params, tokens, config, mode=mode, is_by_token=True, **packing)
        return {
            "tokens": tokens,
            "depth_used": (batch["weights"] > 0) * out.aux.depth_used,
            "scores": out.aux.scores,
            "routers": traces.of_report(out.aux.report),
            "memories": memories.of_report(out.aux.report),
        }

    rows = NamedSharding(mesh, sharding.partition(("batch", None), rules))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(read, in_shardings=(None, rows), out_shardings=everywhere)
