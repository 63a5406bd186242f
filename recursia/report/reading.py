"""A checkpoint reads held-out text: what each token cost, and which recursions it took."""

import dataclasses
import functools
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from recursia import model, scores, sharding
from recursia.architecture import Model
from recursia.data import packing
from recursia.data.tokenizer import Tokenizer
from recursia.data.vocabulary import Spelling
from recursia.errors import DataError
from recursia.evaluate import memories, routing, split, traces
from recursia.evaluate.memories import Memory
from recursia.evaluate.traces import Trace
from recursia.losses import token_nats
from recursia.workdir import trained
from recursia.workdir.trained import Trained

_COUNTED = 1 << 22  # tokens of the training text of which frequencies are counted
KINDS = (
    *("start of a word", "inside a word", "digit", "punctuation", "space", "line break"),
    *("part of a character", "end of text"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What a model made of held-out text; in mode "eval", as published.

    Attributes:
      step: of the checkpoint.
      num_recursions: most recursions of a token.
      pieces: the text of each token of the rows, "" where a character is not complete.
      kinds: index in `KINDS` of each token.
      counts: how often each token occurs in the training text, or in the text that is read.
      is_of_training: which of the two.
      tokens: ids.
      is_token: False in padding.
      nats: cross-entropy of the token after each.
      depth_used: recursions that each took.
      lens: cross-entropy of the token after each, of the state after each recursion; None where
        there is no such state.
      change: distance between the states after two recursions over the norm of the earlier one.
      scores: what the depth policy decided by; see `Aux.scores`.
      traces: the choices of each router, by slot.
      memories: the reads of each memory, by slot.
    """

    step: int
    num_recursions: int
    pieces: list[list[str]]
    kinds: Int[np.ndarray, "B T"]
    counts: Int[np.ndarray, "B T"]
    is_of_training: bool
    tokens: Int[np.ndarray, "B T"]
    is_token: Bool[np.ndarray, "B T"]
    nats: Float[np.ndarray, "B T"]
    depth_used: Int[np.ndarray, "B T"]
    lens: Float[np.ndarray, "R B T"] | None
    change: Float[np.ndarray, "S B T"] | None
    scores: Float[np.ndarray, "R B T"] | None
    traces: dict[str, Trace]
    memories: dict[str, Memory]

    @property
    def loads(self) -> dict[str, Float[np.ndarray, "R E"]]:
        """The share of the choices that each expert got, by slot, in each recursion."""
        return {slot: self._load(trace) for slot, trace in self.traces.items()}

    def _load(self, trace: Trace) -> Float[np.ndarray, "R E"]:
        by_step = trace.taken.sum((1, 2, 3), dtype=np.float64)
        recursion = trace.steps * self.num_recursions // len(by_step)
        taken = np.zeros((self.num_recursions, trace.num_experts))
        np.add.at(taken, recursion, by_step)
        return taken / np.maximum(taken.sum(-1, keepdims=True), 1)

    @property
    def is_taken(self) -> Bool[np.ndarray, "R B T"]:
        """Whether each token takes each recursion; False in padding."""
        numbers = np.arange(self.num_recursions)[:, None, None]
        return (numbers < self.depth_used) & self.is_token

    @property
    def has_choice(self) -> bool:
        """Whether tokens take different numbers of recursions."""
        used = self.depth_used[self.is_token]
        return bool(used.min() < used.max())


def read(workdir: pathlib.Path) -> Reading:
    """Returns what the latest checkpoint of a run makes of its validation split.

    Raises:
      ConfigError, CheckpointError, DataError: if there is no checkpoint, or no text to read.
    """
    loaded = trained.load(workdir)
    paths = split.of_run(loaded, workdir)
    if not paths:
        raise DataError(f"{workdir}: its data has no validation split")
    split.check(loaded, workdir, ["validation"])
    train = loaded.run.train
    count = max(1, routing.TOKENS // (train.batch_size * train.seq_len))
    batches = list(scores.validation_batches(loaded.run, paths[:1], count, loaded.mesh))
    found = [_batch(loaded, batch) for batch in batches]
    rows = lambda name, axis: np.concatenate([each[name] for each in found], axis)
    some = lambda name, axis: None if found[0][name] is None else rows(name, axis)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    is_token = np.concatenate([batch["weights"] for batch in batches]) > 0
    counts, is_of_training = _counts(loaded, tokens[is_token])
    pieces = [_pieces(loaded.tokenizer, row) for row in tokens]
    steps = loaded.model.schedule.steps
    return Reading(
        step=loaded.step,
        num_recursions=loaded.model.schedule.num_recursions,
        pieces=pieces,
        kinds=_kinds(pieces, tokens, loaded.tokenizer.end_of_text),
        counts=counts[tokens],
        is_of_training=is_of_training,
        tokens=tokens,
        is_token=is_token,
        nats=rows("nats", 0),
        depth_used=rows("depth_used", 0),
        lens=some("lens", 1),
        change=some("change", 1),
        scores=some("scores", 1),
        traces=traces.joined([each["traces"] for each in found], steps),
        memories=memories.joined([each["memories"] for each in found], steps),
    )


def _batch(loaded: Trained, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    mesh, rules = loaded.mesh, loaded.run.mesh.rules
    rows = NamedSharding(mesh, sharding.partition(("batch", None), rules))
    with jax.set_mesh(mesh):
        read = jax.jit(
            functools.partial(_read, loaded.model),
            in_shardings=(None, rows),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        return jax.device_get(read(loaded.params, jax.device_put(batch, rows)))


def _read(config: Model, params: model.Params, batch: dict[str, Array]) -> dict[str, Any]:
    packing: dict[str, Any] = {name: batch[name] for name in ("positions", "segment_ids")}
    how: dict[str, Any] = {"mode": "eval", "is_by_token": True}
    out = model.apply(params, batch["tokens"], config, **how, **packing)
    head, states = config.embed.head(params["embed"]), out.aux.states
    nats = lambda x: token_nats(x, head, batch["targets"], scores.CHUNK)
    found: dict[str, Any] = {"lens": None, "change": None}
    if states is not None:
        read = lambda state: nats(model.read(params, state, config, **packing))
        norm = lambda x: jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
        found["lens"] = jax.lax.map(read, states)
        found["change"] = norm(states[1:] - states[:-1]) / jnp.maximum(norm(states[:-1]), 1e-20)
    return {
        **found,
        "nats": nats(out.hidden),
        "depth_used": out.aux.depth_used,
        "scores": out.aux.scores,
        "traces": traces.of_report(out.aux.report),
        "memories": memories.of_report(out.aux.report),
    }


def _counts(loaded: Trained, read: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns how often each id occurs in the training text, or else in the text that is read."""
    size = max(loaded.model.vocab_size, loaded.tokenizer.vocab_size)
    counts, left = np.zeros(size, np.int64), _COUNTED
    try:
        for path in loaded.paths:
            for shard in packing.Reader(path).tokens("train"):
                ids = shard[: min(left, len(shard))]
                counts += np.bincount(ids, minlength=size)[:size]
                left -= len(ids)
    except DataError:
        return np.bincount(read, minlength=size), False
    return (counts, True) if counts.any() else (np.bincount(read, minlength=size), False)


def _pieces(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the text that is certain once each token has come."""
    spelling = Spelling(tokenizer, [])
    return [spelling.add([int(i)]) for i in ids]


def _kinds(pieces: list[list[str]], tokens: np.ndarray, end: int) -> Int[np.ndarray, "B T"]:
    """Returns the kind of each token, of which the last character of the token before tells."""
    found = np.zeros(tokens.shape, np.int32)
    for row, texts in enumerate(pieces):
        before = " "
        for at, text in enumerate(texts):
            kind = "end of text" if tokens[row, at] == end else _kind(text, before)
            found[row, at] = KINDS.index(kind)
            before = text[-1:] or before
    return found


def _kind(text: str, before: str) -> str:
    stripped = text.strip()
    if not text:
        return "part of a character"
    if not stripped:
        return "line break" if "\n" in text else "space"
    first = unicodedata.category(stripped[0])[0]
    if first == "N":
        return "digit"
    if first not in "LM":
        return "punctuation"
    is_inside = text[0] == stripped[0] and unicodedata.category(before)[0] in "LM"
    return "inside a word" if is_inside else "start of a word"
