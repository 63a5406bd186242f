"""How likely continuations are after their contexts: rows of few shapes, scored over a mesh.

A row is padded to the next of a few lengths by its own length alone, so that its score does not
depend on what else is asked. Requests that differ in their last token only are one row.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from recursia import model, sharding
from recursia.architecture import Model
from recursia.depth.policy import Mode
from recursia.errors import DataError
from recursia.evaluate.shapes import Place, allowed, power

WIDTH, CHOICES = 8, 4  # scored tokens and last tokens of a row are padded to powers of these
PARTS = 16  # of the tokens of a batch, of which logits exist at a time


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked: how likely is this continuation after this context?

    Attributes:
      context: ids, at least one.
      continuation: ids that follow them; none is certain.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model makes of a request.

    Attributes:
      log_likelihood: of the whole continuation, in nats; at most 0.
      is_greedy: whether each of its tokens is the likeliest one.
      mean_depth: recursions per token of the row.
    """

    log_likelihood: float
    is_greedy: bool
    mean_depth: float


@dataclasses.dataclass
class _Row:
    """Requests with the same input.

    Attributes:
      inputs: ids that the model is given.
      count: of its last positions, those whose next tokens are scored.
      targets: those tokens but the last.
      lasts: the last token of each request, and which request that is.
    """

    inputs: tuple[int, ...]
    count: int
    targets: tuple[int, ...]
    lasts: list[tuple[int, int]]


def is_cut(request: Request, context_length: int) -> bool:
    """Returns whether a request is longer than the model's context, and cut from the left."""
    return len(request.context) + len(request.continuation) - 1 > context_length


def score(
    params: Any,
    config: Model,
    requests: Sequence[Request],
    place: Place,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Returns the answer to each request.

    A continuation longer than the context is scored in parts that fit, the sum of which counts.

    Args:
      params: float32 parameters, wherever they lie.
      config: the model.
      requests: of any lengths.
      place: where and how.
      advance: is told how many requests were answered since it was last told.

    Raises:
      DataError: for an empty context.
    """
    parts = [part for each in requests for part in _parts(each, place.context_length)]
    owners = [i for i, each in enumerate(requests) for _ in _parts(each, place.context_length)]
    answers, left = [Answer(0.0, True, float("nan"))] * len(requests), collections.Counter(owners)
    advance(len(requests) - len(left))

    def done(some: list[int]) -> None:
        left.subtract(owners[part] for part in some)
        advance(len({owners[part] for part in some if not left[owners[part]]}))

    for owner, answer in zip(owners, _answers(params, config, parts, place, done), strict=True):
        before = answers[owner]
        answers[owner] = Answer(
            before.log_likelihood + answer.log_likelihood,
            before.is_greedy and answer.is_greedy,
            answer.mean_depth,
        )
    return answers


def _parts(request: Request, context_length: int) -> list[Request]:
    """Returns requests that together ask the same, none for more than the context holds."""
    if not request.context:
        raise DataError("eval: a context has 0 tokens, takes at least 1; begin with the prefix")
    whole, first = request.context + request.continuation, len(request.context)
    starts = range(first, len(whole), context_length)
    return [Request(whole[:at], whole[at : at + context_length]) for at in starts]


def _answers(
    params: Any,
    config: Model,
    parts: Sequence[Request],
    place: Place,
    done: Callable[[list[int]], None],
) -> list[Answer]:
    rows = _rows(parts, place.context_length)
    found: dict[int, Answer] = {}
    run = _scored(config, place.mode, place.mesh, place.rules)
    with jax.set_mesh(place.mesh):
        for some, arrays in _batches(rows, config, place):
            got = jax.device_get(run(params, place.put(arrays)))
            for at, row in enumerate(some):
                before, depth = float(got["before"][at]), float(got["depth"][at])
                for choice, (_, owner) in enumerate(row.lasts):
                    total = before + float(got["last"][at, choice])
                    greedy = bool(got["greedy"][at] & got["last_greedy"][at, choice])
                    found[owner] = Answer(total, greedy, depth)
            done([owner for row in some for _, owner in row.lasts])
    return [found[index] for index in range(len(parts))]


def _rows(requests: Sequence[Request], context_length: int) -> list[_Row]:
    """Returns the rows that answer all requests, the longest first."""
    rows: dict[tuple[tuple[int, ...], int], _Row] = {}
    for index, request in enumerate(requests):
        count = len(request.continuation)
        kept = (request.context + request.continuation)[-(context_length + 1) :]
        inputs, targets = kept[:-1], request.continuation[:-1]
        row = rows.setdefault((inputs, count), _Row(inputs, count, targets, []))
        row.lasts.append((kept[-1], index))
    return sorted(rows.values(), key=lambda row: -len(row.inputs))


def _batches(
    rows: list[_Row], config: Model, place: Place
) -> Iterator[tuple[list[_Row], dict[str, np.ndarray]]]:
    """Yields rows of one length, alike in how much of them is scored, and as arrays."""
    choices = power(CHOICES, max((len(row.lasts) for row in rows), default=1))
    by_length: dict[int, list[_Row]] = {}
    for row in rows:
        length = allowed(config, len(row.inputs), place.context_length)
        by_length.setdefault(length, []).append(row)
    for length, alike in by_length.items():
        alike.sort(key=lambda row: -row.count)
        size = place.rows_at_a_time(length, len(alike))
        for first in range(0, len(alike), size):
            part = alike[first : first + size]
            width = min(power(WIDTH, part[0].count), length)
            yield part, _arrays(part, size, length, width, choices)


def _arrays(
    part: list[_Row], size: int, length: int, width: int, choices: int
) -> dict[str, np.ndarray]:
    """Returns rows as arrays; rows that fill up a batch are nothing but padding."""
    arrays = {
        "tokens": np.zeros((size, length), np.int32),
        "lengths": np.zeros(size, np.int32),
        "counts": np.zeros(size, np.int32),
        "targets": np.zeros((size, width), np.int32),  # against the right, one place left free
        "lasts": np.zeros((size, choices), np.int32),
    }
    for at, row in enumerate(part):
        arrays["tokens"][at, : len(row.inputs)] = row.inputs
        arrays["lengths"][at], arrays["counts"][at] = len(row.inputs), row.count
        arrays["targets"][at, width - row.count : width - 1] = row.targets
        arrays["lasts"][at, : len(row.lasts)] = [token for token, _ in row.lasts]
    return arrays


@functools.lru_cache(maxsize=32)
def _scored(config: Model, mode: Mode, mesh: Mesh, rules: sharding.Rules):
    """Returns a function from parameters and a batch of rows to their scores.

    It is two programs: the model's depends on the rows' length alone, and is slow to compile.
    """
    rows = NamedSharding(mesh, sharding.partition(("batch",), rules))
    everywhere = NamedSharding(mesh, PartitionSpec())
    lay = lambda f, count, out: jax.jit(f, in_shardings=(None, *(rows,) * count), out_shardings=out)

    def forward(params: Any, tokens: Array, lengths: Array) -> tuple[Array, Array]:
        is_live = jnp.arange(tokens.shape[1]) < lengths[:, None]
        segments = is_live.astype(jnp.int32)
        out = model.apply(params, tokens, config, segment_ids=segments, mode=mode)
        return out.hidden, (out.aux.depth_used * is_live).sum(1) / jnp.maximum(lengths, 1)

    def read(params: Any, hidden: Array, batch: dict[str, Array]) -> dict[str, Array]:
        width, length = batch["targets"].shape[1], hidden.shape[1]
        along = jnp.arange(width)
        places = jnp.maximum(batch["lengths"][:, None] - width + along, 0)
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        is_scored = (along >= width - batch["counts"][:, None]) & (along < width - 1)
        columns = jnp.moveaxis(hidden, 1, 0), batch["targets"].T[..., None]
        column = lambda x: _log_likelihood(params, config, *x)
        each, greedy = jax.lax.map(column, columns, batch_size=max(length // PARTS, 1))
        last, last_greedy = column((hidden[:, -1], batch["lasts"]))
        return {
            "before": jnp.sum(each[..., 0].T * is_scored, axis=1),
            "greedy": jnp.all(greedy[..., 0].T | ~is_scored, axis=1),
            "last": last,
            "last_greedy": last_greedy,
        }

    forward, read = lay(forward, 2, (rows, everywhere)), lay(read, 2, everywhere)

    def run(params: Any, batch: dict[str, Array]) -> dict[str, Array]:
        hidden, depth = forward(params, batch["tokens"], batch["lengths"])
        return {**read(params, hidden, batch), "depth": depth}

    return run


def _log_likelihood(
    params: Any, config: Model, hidden: Float[Array, "B D"], targets: Int[Array, "B C"]
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Returns log-probabilities of some next tokens, and whether each is the likeliest."""
    logits = model.logits(params, hidden, config)
    chosen = jnp.take_along_axis(logits, targets, axis=1)
    total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    return chosen - total, targets == jnp.argmax(logits, axis=1, keepdims=True)
