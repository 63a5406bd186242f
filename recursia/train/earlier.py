"""Parameters of an earlier run, as a teacher or as the initial parameters."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from recursia import buckets, model, params, settings, sharding
from recursia.architecture import ENDS, Model
from recursia.data.tokenizer import Tokenizer
from recursia.errors import CheckpointError, ConfigError, UserError
from recursia.params import Params
from recursia.train.distill import Teacher
from recursia.train.placement import State
from recursia.train.step import Trainer
from recursia.workdir import directory, trained
from recursia.workdir.checkpoint import Checkpoints


def teacher(run: settings.Run, vocab_size: int, tokenizer: Tokenizer, mesh: Mesh) -> Teacher | None:
    """Returns the model of `distill.teacher`, sharded over the mesh; None if the field is empty.

    It is a run's at its latest step, or a checkpoint from elsewhere, computed in this run's dtype.

    Args:
      run: the settings.
      vocab_size: rows of the embedding, which the teacher must have too.
      tokenizer: of this run, which must be the teacher's too.
      mesh: the devices.

    Raises:
      ConfigError, CheckpointError, DataError: if the teacher holds no checkpoint, or has another
        vocabulary, another width or too few layers.
    """
    if not (workdir := run.distill.teacher):
        return None
    if trained.is_elsewhere(place := buckets.path(workdir)):
        with _named("distill.teacher"):
            config, theirs, restore = trained.elsewhere(place)
            directory.check_same(str(place), theirs, tokenizer, "this run")
        config = dataclasses.replace(config, dtype=run.model.dtype)
        layers = _layers(run, config, vocab_size)
        return Teacher(config, restore(_fitting(config, mesh, run)), layers)
    with _opened(workdir, "distill.teacher", tokenizer) as (config, checkpoints, step):
        layers, where = _layers(run, config, vocab_size), _fitting(config, mesh, run)
        abstract = params.abstract(model.specs(config), where)
        return Teacher(config, checkpoints.restore(step, {"params": abstract})["params"], layers)


def outline(run: settings.Run, vocab_size: int, mesh: Mesh) -> Teacher | None:
    """Returns the model of `distill.teacher` with shapes in place of its parameters.

    Args:
      run: the settings.
      vocab_size: rows of the embedding, which it is taken to have.
      mesh: the devices, which may belong to another host.

    Raises:
      ConfigError, CheckpointError, DataError: as `teacher`.
    """
    if not (workdir := run.distill.teacher):
        return None
    with _named("distill.teacher"):
        config = trained.model_of(buckets.path(workdir)).sized(vocab_size)
    config = dataclasses.replace(config, dtype=run.model.dtype)
    weights = params.abstract(model.specs(config), _fitting(config, mesh, run))
    return Teacher(config, weights, _layers(run, config, vocab_size))


def _fitting(config: Model, mesh: Mesh, run: settings.Run) -> Params:
    return sharding.fitting(model.specs(config), mesh, run.mesh.rules)


def _layers(run: settings.Run, config: Model, vocab_size: int) -> tuple[int, ...]:
    """Returns the layers of a teacher whose states are learnt from.

    Raises:
      ConfigError: if this run cannot learn from it.
    """
    how, count, ours = run.distill, config.num_layers, run.model
    if config.vocab_size != vocab_size:
        raise ConfigError(
            f"config.distill.teacher: {how.teacher} has {config.vocab_size} tokens, this run "
            f"{vocab_size}; take one of the same tokenizer"
        )
    try:
        config.embed.check_length(run.train.seq_len)
    except ValueError as error:
        raise ConfigError(f"config.distill.teacher: {how.teacher}: {error}") from None
    if not how.layers:
        return ()
    widths = {config.block.embed_dim, config.end_block.embed_dim}
    if widths != {width := ours.block.embed_dim}:
        theirs = " and ".join(map(str, sorted(widths)))
        raise ConfigError(
            f"config.distill.layers: states of {how.teacher} are {theirs} wide, and {width} "
            f"in this model; take a teacher of that width, or 0 layers"
        )
    if (copies := config.parallel.num_copies) > 1:
        raise ConfigError(
            f"config.distill.layers: a token has the states of {copies} copies in {how.teacher}, "
            "and one here; take a teacher of one copy, or 0 layers"
        )
    if not config.depth.is_layered:
        raise ConfigError(
            f"config.distill.layers: under the depth {config.depth.kind!r} of {how.teacher} tokens "
            "take other steps, or other times; take a teacher of depth 'fixed', or 0 layers"
        )
    chosen = how.teacher_layers or tuple(range(count - how.layers, count))
    if not 0 <= min(chosen) <= max(chosen) < count:
        wrong = "teacher_layers" if how.teacher_layers else "layers"
        raise ConfigError(
            f"config.distill.{wrong}: {how.teacher} has the layers 0 to {count - 1}, and {chosen} "
            "were to teach; take some of those"
        )
    return chosen


def start(trainer: Trainer, state: State, tokenizer: Tokenizer) -> tuple[State, str]:
    """Returns the first state with the parameters of `train.init_from`, and a message.

    Sections of parameters that the earlier model lacks, such as those of a depth policy, and slots
    of its blocks, such as prefixes, keep their random values.

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
        drawn = [name for name in ours if _has(ours, name) and not _has(theirs, name)]
        drawn += [
            f"{stack}.{slot}"
            for stack in ("core", *ENDS)
            for slot in ours[stack]
            if theirs[stack] and slot not in theirs[stack]
        ]
        wanted, saved = (_shapes(_without(tree, drawn)) for tree in (ours, theirs))
        for name in wanted | saved:
            if wanted.get(name) != saved.get(name):
                raise CheckpointError(
                    f"config.train.init_from: {workdir} has {name} {saved.get(name)}, this model "
                    f"{wanted.get(name)}; take a run of the same model"
                )
        abstract = _without(trainer.abstract().params, drawn)
        weights = checkpoints.restore(step, {"params": abstract})["params"]
    suffix = f"; drawn: {', '.join(drawn)}" if drawn else ""
    message = f"starting from {workdir} at step {step}{suffix}"
    merged = {**state.params, **weights}
    for stack, _, slot in (name.partition(".") for name in drawn if "." in name):
        merged[stack] = {**merged[stack], slot: state.params[stack][slot]}
    return trainer.with_params(state, merged), message


@contextlib.contextmanager
def _opened(
    workdir: str, field: str, tokenizer: Tokenizer
) -> Iterator[tuple[Model, Checkpoints, int]]:
    """Yields a run's model, checkpoints and latest step, after comparing tokenizers."""
    folder = buckets.path(workdir)
    with _named(field):
        run = directory.recorded(folder)
        directory.check_tokenizer(folder, run, tokenizer, "this run")
        checkpoints = Checkpoints(folder / "checkpoints", 1, is_read_only=True)
    with contextlib.closing(checkpoints):
        with _named(field):
            step = checkpoints.choose(None)
            vocab_size = checkpoints.meta(step)["model"]["vocab_size"]
        yield run.model.sized(vocab_size), checkpoints, step


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Puts a field's name before the errors that its value causes."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"config.{field}: {error}") from None


def _has(tree: Params, name: str) -> bool:
    return bool(jax.tree.leaves(tree.get(name, {})))


def _without(tree: Params, names: list[str]) -> Params:
    """Returns parameters but for some sections, and for some slots of stacks."""
    kept = {name: branch for name, branch in tree.items() if name not in names}
    for stack, _, slot in (name.partition(".") for name in names if "." in name):
        kept[stack] = {name: branch for name, branch in kept[stack].items() if name != slot}
    return kept


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): s.shape for p, s in leaves}
