"""Evaluation of a model on text: nats per token, bits per byte, recursions used."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from recursia import console, distributed, model, settings, sharding, stall
from recursia.architecture import Model
from recursia.data.loader import Batch, evaluation_batches, rows_here
from recursia.data.windows import Windows, padding
from recursia.depth.policy import Mode
from recursia.errors import DataError, UserError
from recursia.losses import token_nats

# From parameters, the bytes of each token id and a batch to named sums over its tokens.
Sums = Callable[[model.Params, ArrayLike, dict[str, Array]], dict[str, Array]]

CHUNK = 128  # tokens of each sequence whose logits are in memory at a time


@dataclasses.dataclass(frozen=True)
class Score:
    """Losses of a model on a text, and the recursions that it took.

    Attributes:
      nats_per_token: mean cross-entropy of the tokens.
      bits_per_byte: their total cross-entropy per UTF-8 byte of the text.
      tokens: number of predicted tokens.
      mean_depth: recursions per token.
      lens_nats_per_token: cross-entropy of the states after each recursion, read by the logit lens
        (`model.read`); empty where the model returns the last states alone.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    mean_depth: float
    lens_nats_per_token: tuple[float, ...]


def _rows(mesh: Mesh, rules: sharding.Rules) -> NamedSharding:
    return NamedSharding(mesh, sharding.partition(("batch", None), rules))


@functools.lru_cache(maxsize=32)
def _sums(config: Model, mode: Mode, mesh: Mesh, rules: sharding.Rules) -> Sums:
    """Returns a compiled function from parameters and a batch to sums over its tokens."""
    rows = _rows(mesh, rules)
    replicated = NamedSharding(mesh, PartitionSpec())

    def sums(params: model.Params, token_bytes: Array, batch: dict[str, Array]) -> dict[str, Array]:
        packing: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        out = model.apply(params, batch["tokens"], config, mode=mode, **packing)
        weights, head = batch["weights"], config.embed.head(params["embed"])
        nats = lambda x: (weights * token_nats(x, head, batch["targets"], CHUNK)).sum()
        lens = jnp.zeros(0)
        if out.aux.states is not None:
            read = lambda state: nats(model.read(params, state, config, **packing))
            lens = jax.lax.map(read, out.aux.states)
        return {
            "nats": nats(out.hidden),
            "tokens": weights.sum(),
            "bytes": (weights * token_bytes[batch["targets"]]).sum(),
            "depth": (weights * out.aux.depth_used).sum(),
            "lens": lens,
        }

    return jax.jit(sums, in_shardings=(None, replicated, rows), out_shardings=replicated)


def score(
    params: model.Params,
    config: Model,
    batches: Iterable[dict[str, np.ndarray]],
    token_bytes: np.ndarray,
    *,
    mode: Mode,
    mesh: Mesh,
    rules: sharding.Rules,
) -> Score:
    """Returns a model's score on batches of rows.

    Args:
      params: float32 parameters, on any devices.
      config: the model.
      batches: tokens, targets, positions, segment_ids and weights, each [B T]; with several
        processes, the rows of each batch that this process's devices hold.
      token_bytes: number of UTF-8 bytes of each id, 0 for special tokens.
      mode: "eval" as published, "causal" as in decoding.
      mesh: devices over which the rows are split.
      rules: mesh axes that shard each logical axis.

    Raises:
      DataError: if the text has no tokens to predict.
    """
    sums, rows = _sums(config, mode, mesh, rules), _rows(mesh, rules)
    put = functools.partial(jax.make_array_from_process_local_data, rows)
    total: dict[str, Any] = {}
    with jax.set_mesh(mesh):
        for batch in batches:
            sharded = {name: put(value) for name, value in batch.items()}
            with stall.waiting("batch of a text"):
                added = jax.device_get(sums(params, token_bytes, sharded))
            exact = {name: value.astype(np.float64) for name, value in added.items()}
            total = {name: total.get(name, 0.0) + value for name, value in exact.items()}
    if not total or not total["tokens"]:
        raise DataError("eval: the text has 0 tokens to predict; give a longer one")
    tokens = total["tokens"]
    return Score(
        nats_per_token=float(total["nats"] / tokens),
        bits_per_byte=float(total["nats"] / math.log(2) / max(total["bytes"], 1)),
        tokens=int(tokens),
        mean_depth=float(total["depth"] / tokens),
        lens_nats_per_token=tuple(float(x) for x in total["lens"] / tokens),
    )


def validation_batches(
    run: settings.Run, paths: tuple[str, ...], num_batches: int, mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of the validation split of prepared directories, each token once.

    With several processes, each reads the rows that its own devices hold.

    Args:
      run: settings of batches and of attention across documents.
      paths: the directories.
      num_batches: batches to read of each directory; 0 reads all.
      mesh: devices over which the rows are split.

    Raises:
      DataError: if they cannot be read; in all processes, if one of them cannot read its rows.
    """
    train = run.train
    windows, rows = _opened(run, paths, mesh)
    counts = [-(-len(split) // train.batch_size) for split in windows]
    total = sum(min(count, num_batches or count) for count in counts)
    of = lambda split: evaluation_batches(
        split, train.batch_size, run.data.cross_document_attention, num_batches or None, rows
    )
    batches = itertools.chain.from_iterable(map(of, windows))
    bar = console.bar("scoring", total, "batches")
    with bar if distributed.is_first() else contextlib.nullcontext(lambda _: None) as advance:
        for batch in _to_the_end(batches, total, (len(rows), train.seq_len)):
            yield batch
            advance(1)


def _opened(
    run: settings.Run, paths: tuple[str, ...], mesh: Mesh
) -> tuple[list[Windows], tuple[int, ...]]:
    """Returns the rows of the directories, and which of a batch this process reads.

    An error in one process raises in all.
    """
    rows, windows, failure = (), [], None
    try:
        rows = rows_here(_rows(mesh, run.mesh.rules), (run.train.batch_size, run.train.seq_len))
        windows = [Windows(path, "validation", run.train.seq_len, keep_tail=True) for path in paths]
    except UserError as error:
        failure = error
    if failure := distributed.agreed(failure):
        raise failure
    return windows, rows


def _to_the_end(batches: Iterator[Batch], total: int, shape: tuple[int, int]) -> Iterator[Batch]:
    """Yields a number of batches, then raises in all processes what one of them could not read.

    The others wait for that process in the sums of every batch: in place of those that are left it
    takes padding.
    """
    failure = None
    for _ in range(total):
        try:
            batch = next(batches)
        except DataError as error:
            if distributed.is_alone():
                raise
            failure, batches = error, itertools.repeat(padding(*shape))
            batch = next(batches)
        yield batch
    if failure := distributed.agreed(failure):
        raise failure
