"""How well a model predicts text: nats per token, bits per byte, recursions used."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recursia import console, distributed, model, settings, sharding
from recursia.architecture import Model
from recursia.data.loader import evaluation_batches, rows_here
from recursia.data.windows import Windows
from recursia.depth.policy import Mode
from recursia.errors import DataError
from recursia.layers import embedding
from recursia.losses import token_nats

CHUNK = 128  # tokens of each sequence whose logits exist at a time


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    Attributes:
      nats_per_token: mean cross-entropy of the tokens.
      bits_per_byte: the same information over the UTF-8 bytes that the tokens stand for.
      tokens: predicted tokens.
      mean_depth: recursions per token.
      lens_nats_per_token: cross-entropy of the state after each recursion, read as the model reads
        the last (`model.read`); empty where recursions are not walked in turn.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    mean_depth: float
    lens_nats_per_token: tuple[float, ...]


def _rows(mesh: Mesh, rules: sharding.Rules) -> NamedSharding:
    return NamedSharding(mesh, sharding.partition(("batch", None), rules))


@functools.lru_cache(maxsize=32)
def _sums(config: Model, mode: Mode, mesh: Mesh, rules: sharding.Rules):
    """Returns a compiled function from parameters and a batch to sums over its tokens."""
    rows = _rows(mesh, rules)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def sums(params: Any, token_bytes: Array, batch: dict[str, Array]) -> dict[str, Array]:
        where: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
        out = model.apply(params, batch["tokens"], config, mode=mode, **where)
        weights, head = batch["weights"], embedding.head(params["embed"], config.embed)
        nats = lambda x: (weights * token_nats(x, head, batch["targets"], CHUNK)).sum()
        lens = jnp.zeros(0)
        if out.aux.states is not None:
            read = lambda state: nats(model.read(params, state, config, **where))
            lens = jax.lax.map(read, out.aux.states)
        return {
            "nats": nats(out.hidden),
            "tokens": weights.sum(),
            "bytes": (weights * token_bytes[batch["targets"]]).sum(),
            "depth": (weights * out.aux.depth_used).sum(),
            "lens": lens,
        }

    return jax.jit(sums, in_shardings=(None, everywhere, rows), out_shardings=everywhere)


def score(
    params: Any,
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
      params: float32 parameters, wherever they lie.
      config: the model.
      batches: tokens, targets, positions, segment_ids and weights, each [B T]; of several
        processes, those rows of each batch that this one's devices hold.
      token_bytes: UTF-8 bytes of each id, 0 for special ones.
      mode: "eval" as published, "causal" as decoding decides.
      mesh: devices over which the rows are split.
      rules: how.

    Raises:
      DataError: if there is nothing to predict.
    """
    sums, rows = _sums(config, mode, mesh, rules), _rows(mesh, rules)
    put = functools.partial(jax.make_array_from_process_local_data, rows)
    total: dict[str, Any] = {}
    with jax.set_mesh(mesh):
        for batch in batches:
            here = {name: put(value) for name, value in batch.items()}
            part = jax.device_get(sums(params, token_bytes, here))
            wide = {name: value.astype(np.float64) for name, value in part.items()}
            total = {name: total.get(name, 0.0) + value for name, value in wide.items()}
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
    """Yields the validation split of prepared directories, row after row, each token once.

    Of several processes, each reads the rows that its own devices hold.

    Args:
      run: whose rows, batches and view of other documents are taken.
      paths: the directories.
      num_batches: of each, to read; 0 reads all.
      mesh: devices over which the rows are split.
    """
    train = run.train
    rows = rows_here(_rows(mesh, run.mesh.rules), (train.batch_size, train.seq_len))
    windows = [Windows(path, "validation", train.seq_len, keep_tail=True) for path in paths]
    each = [-(-len(of) // train.batch_size) for of in windows]
    total = sum(min(count, num_batches or count) for count in each)
    bar = console.bar("scoring", total, "batches")
    with bar if distributed.is_first() else contextlib.nullcontext(lambda _: None) as advance:
        for of in windows:
            for batch in evaluation_batches(
                of,
                train.batch_size,
                run.data.cross_document_attention,
                num_batches or None,
                rows,
            ):
                yield batch
                advance(1)
