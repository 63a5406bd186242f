"""The parts of a run, opened before anything is computed: data, mesh, model, validation."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

import recursia.config
from recursia import budget, distributed, params, settings, sharding
from recursia.data import packing, verification
from recursia.data.loader import Loader, rows_here
from recursia.data.manifest import SPLITS
from recursia.data.tokenizer import Tokenizer
from recursia.errors import ConfigError
from recursia.train import earlier
from recursia.train.replicated import trainer_of
from recursia.train.sinks import opening as sinks
from recursia.train.step import Trainer
from recursia.train.validation import Validation
from recursia.workdir import directory


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
      paths: prepared directories of the data.
      loader: of the training data.
      trainer: of the model.
      validation: of the model, on the validation data.
      identity: `directory.identity` of the run.
      known: data files that are known to be whole, in the first process.
    """

    paths: tuple[str, ...]
    loader: Loader
    trainer: Trainer
    validation: Validation
    identity: dict[str, Any]
    known: verification.Known


def opened(run: settings.Run, workdir: pathlib.Path) -> Parts:
    """Returns the parts of a run; all processes must call it.

    Args:
      run: the settings.
      workdir: the run's directory.

    Raises:
      ConfigError, DataError, CheckpointError: if the settings, the data or the teacher are not
        usable, or differ between processes.
    """
    with distributed.together():
        sinks.check(run)
        mesh = sharding.make_mesh(run.mesh)
        rows = run.train.batch_size // run.train.num_microbatches
        sharding.check_batch(rows, run.train.seq_len, mesh, run.replicas.count)
        paths = directory.data_directories(run.data, workdir)
        known: verification.Known = {}
        if distributed.is_first():
            known = verification.check(paths, workdir / verification.FILE, SPLITS)
    with distributed.together():
        loader = load(run, paths, mesh)
        vocab = budget.vocab_size(run, loader.vocab_size)
        prompts = tuple(_ids(loader.tokenizer, prompt) for prompt in run.eval.prompts)
        has_split = lambda path: "validation" in packing.Reader(path).manifest["splits"]
        scored = tuple(filter(has_split, paths))
    identity = directory.identity(run, vocab, loader.identity)
    distributed.check_same("configuration or data", _digest(run, identity))
    if teacher := earlier.teacher(run, vocab, loader.tokenizer, mesh):
        bits = int(jax.jit(params.fingerprint)(teacher.params))
        identity["teacher"] = {"path": run.distill.teacher, "parameters": bits}
    trainer = trainer_of(run, run.model.sized(vocab), mesh, teacher)
    validation = Validation(trainer, loader.tokenizer, scored, prompts)
    return Parts(paths, loader, trainer, validation, identity, known)


def load(run: settings.Run, paths: tuple[str, ...], mesh: Mesh) -> Loader:
    """Opens the training data; this process reads only the rows that its devices hold."""
    data, train = run.data, run.train
    split = sharding.partition(("batch", None), run.mesh.rules)
    return Loader(
        paths,
        data.weights or (1.0,) * len(paths),
        "train",
        train.seq_len,
        train.batch_size,
        data.seed,
        data.cross_document_attention,
        rows_here(NamedSharding(mesh, split), (train.batch_size, train.seq_len)),
    )


def _ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the token ids of a prompt; raises ConfigError if there are none."""
    if ids := tokenizer.encode(prompt):
        return ids
    raise ConfigError(f"config.eval.prompts: {prompt!r} has 0 tokens; give at least 1")


def _digest(run: settings.Run, identity: dict[str, Any]) -> str:
    """Returns a digest of the settings that all processes must share: all but the data's paths."""
    shared = recursia.config.to_dict(run) | {"data": None, "identity": identity}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
