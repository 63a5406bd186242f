"""Parameters of an earlier run, as a teacher or as the initial parameters."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from recursia import buckets, model, params, settings, sharding
from recursia.architecture import Model
from recursia.data.tokenizer import Tokenizer
from recursia.errors import CheckpointError, ConfigError, UserError
from recursia.params import Params
from recursia.train.distill import Teacher
from recursia.train.step import State, Trainer
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints


def teacher(run: settings.Run, vocab_size: int, tokenizer: Tokenizer, mesh: Mesh) -> Teacher | None:
    """Returns the model of `distill.teacher`, sharded over the mesh; None if the field is empty.

    Args:
      run: the settings.
      vocab_size: rows of the embedding, which the teacher must have too.
      tokenizer: of this run, which must be the teacher's too.
      mesh: the devices.

    Raises:
      ConfigError, CheckpointError: if the teacher is not a run, holds no checkpoint, or has another
        vocabulary.
    """
    if not (workdir := run.distill.teacher):
        return None
    with _opened(workdir, "distill.teacher", tokenizer) as (config, checkpoints, step):
        if config.vocab_size != vocab_size:
            raise ConfigError(
                f"config.distill.teacher: {workdir} has {config.vocab_size} tokens, this run "
                f"{vocab_size}; take one of the same tokenizer"
            )
        specs = model.specs(config)
        where = sharding.fitting(specs, mesh, run.mesh.rules)
        weights = checkpoints.restore(step, {"params": params.abstract(specs, where)})["params"]
    return Teacher(config, weights)


def start(trainer: Trainer, state: State, tokenizer: Tokenizer) -> tuple[State, str]:
    """Returns the first state with the parameters of `train.init_from`, and a message.

    Sections of parameters that the earlier model lacks, such as those of a depth policy, keep
    their random values.

    Args:
      trainer: of the new run.
      state: the new run's randomly initialised state.
      tokenizer: of the new run, which must be the earlier one's too.

    Raises:
      ConfigError, CheckpointError: if the earlier directory is not a run, holds no checkpoint, or
        has a model whose parameters have other shapes.
    """
    workdir = trainer.run.train.init_from
    with _opened(workdir, "train.init_from", tokenizer) as (config, checkpoints, step):
        ours, theirs = trainer.specs, model.specs(config)
        drawn = [name for name in ours if jax.tree.leaves(ours[name]) and not _has(theirs, name)]
        wanted, saved = (_shapes(tree, drawn) for tree in (ours, theirs))
        for name in wanted | saved:
            if wanted.get(name) != saved.get(name):
                raise CheckpointError(
                    f"config.train.init_from: {workdir} has {name} {saved.get(name)}, this model "
                    f"{wanted.get(name)}; take a run of the same model"
                )
        abstract = {n: tree for n, tree in trainer.abstract().params.items() if n not in drawn}
        weights = checkpoints.restore(step, {"params": abstract})["params"]
    suffix = f"; drawn: {', '.join(drawn)}" if drawn else ""
    message = f"starting from {workdir} at step {step}{suffix}"
    return dataclasses.replace(state, params={**state.params, **weights}), message


@contextlib.contextmanager
def _opened(
    workdir: str, field: str, tokenizer: Tokenizer
) -> Iterator[tuple[Model, Checkpoints, int]]:
    """Yields a run's model, checkpoints and latest step, after comparing tokenizers."""
    folder = buckets.path(workdir)
    try:
        run = directory.recorded(folder)
        directory.check_tokenizer(folder, run, tokenizer, "this run")
        checkpoints = Checkpoints(folder / "checkpoints", 1, is_read_only=True)
    except UserError as error:
        raise type(error)(f"config.{field}: {error}") from None
    with contextlib.closing(checkpoints):
        try:
            step = checkpoints.choose(None)
            vocab_size = checkpoints.meta(step)["model"]["vocab_size"]
        except UserError as error:
            raise type(error)(f"config.{field}: {error}") from None
        yield run.model.sized(vocab_size), checkpoints, step


def _has(tree: Params, name: str) -> bool:
    return bool(jax.tree.leaves(tree.get(name, {})))


def _shapes(tree: Params, without: list[str]) -> dict[str, tuple[int, ...]]:
    kept = {name: branch for name, branch in tree.items() if name not in without}
    leaves = jax.tree_util.tree_leaves_with_path(kept)
    return {jax.tree_util.keystr(p, simple=True, separator="."): s.shape for p, s in leaves}
