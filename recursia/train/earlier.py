"""Another run's parameters: to start from, or to learn from."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from recursia import model, params, settings, sharding
from recursia.architecture import Model
from recursia.data.tokenizer import Tokenizer
from recursia.errors import CheckpointError, ConfigError, UserError
from recursia.train.distill import Teacher
from recursia.train.step import State, Trainer
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints


def teacher(run: settings.Run, vocab_size: int, tokenizer: Tokenizer, mesh: Mesh) -> Teacher | None:
    """Returns the model that `distill.teacher` names, laid over the mesh as the run's own is.

    Args:
      run: the settings.
      vocab_size: rows of the embedding that both models must have.
      tokenizer: of this run, which must be the teacher's too.
      mesh: the devices.

    Raises:
      ConfigError, CheckpointError: if it is no run, holds no checkpoint, or has other tokens.
    """
    if not (place := run.distill.teacher):
        return None
    with _opened(place, "distill.teacher", tokenizer) as (config, checkpoints, step):
        if config.vocab_size != vocab_size:
            raise ConfigError(
                f"config.distill.teacher: {place} has {config.vocab_size} tokens, this run "
                f"{vocab_size}; take one of the same tokenizer"
            )
        specs = model.specs(config)
        where = sharding.fitting(specs, mesh, run.mesh.rules)
        found = checkpoints.restore(step, {"params": params.abstract(specs, where)})["params"]
    return Teacher(config, found)


def start(trainer: Trainer, state: State, tokenizer: Tokenizer) -> tuple[State, str]:
    """Returns the first state with the parameters of `train.init_from`, and a line that says so.

    What this model has besides that one, by the names at the top of the tree (a depth policy's own
    parameters, say), stays as it was drawn.

    Args:
      trainer: of the run that starts.
      state: its first, drawn.
      tokenizer: of the run, which must be that one's too.

    Raises:
      ConfigError, CheckpointError: if that is no run, holds no checkpoint, or another model's.
    """
    place = trainer.run.train.init_from
    with _opened(place, "train.init_from", tokenizer) as (config, checkpoints, step):
        ours, theirs = trainer.specs, model.specs(config)
        drawn = [name for name in ours if jax.tree.leaves(ours[name]) and not _has(theirs, name)]
        wanted, given = (_shapes(tree, drawn) for tree in (ours, theirs))
        for name in wanted | given:
            if wanted.get(name) != given.get(name):
                raise CheckpointError(
                    f"config.train.init_from: {place} has {name} {given.get(name)}, this model "
                    f"{wanted.get(name)}; take a run of the same model"
                )
        abstract = {n: tree for n, tree in trainer.abstract().params.items() if n not in drawn}
        found = checkpoints.restore(step, {"params": abstract})["params"]
    besides = f"; drawn: {', '.join(drawn)}" if drawn else ""
    said = f"starting from {place} at step {step}{besides}"
    return dataclasses.replace(state, params={**state.params, **found}), said


@contextlib.contextmanager
def _opened(
    place: str, field: str, tokenizer: Tokenizer
) -> Iterator[tuple[Model, Checkpoints, int]]:
    """Gives a run's model, its checkpoints and the latest step, if its tokenizer is this."""
    try:
        run = directory.recorded(pathlib.Path(place))
        directory.check_tokenizer(pathlib.Path(place), run, tokenizer, "this run")
        checkpoints = Checkpoints(pathlib.Path(place) / "checkpoints", 1, is_read_only=True)
    except UserError as error:
        raise type(error)(f"config.{field}: {error}") from None
    with contextlib.closing(checkpoints):
        try:
            step = checkpoints.choose(None)
            vocab_size = checkpoints.meta(step)["model"]["vocab_size"]
        except UserError as error:
            raise type(error)(f"config.{field}: {error}") from None
        yield run.model.sized(vocab_size), checkpoints, step


def _has(tree: dict[str, Any], name: str) -> bool:
    return bool(jax.tree.leaves(tree.get(name, {})))


def _shapes(tree: dict[str, Any], without: list[str]) -> dict[str, tuple[int, ...]]:
    kept = {name: branch for name, branch in tree.items() if name not in without}
    leaves = jax.tree_util.tree_leaves_with_path(kept)
    return {jax.tree_util.keystr(p, simple=True, separator="."): s.shape for p, s in leaves}
