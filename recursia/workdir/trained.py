"""A trained model, loaded from its run's directory or written as one."""

import contextlib
import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from recursia import changes, config, model, params, settings, sharding
from recursia.architecture import Model
from recursia.data.tokenizer import Tokenizer
from recursia.errors import CheckpointError, ConfigError
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints

_NONE: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint and what it takes to use it.

    Attributes:
      run: its settings, with the mesh of the devices here.
      step: updates made.
      model: the model, at full depth.
      mesh: those devices, along "fsdp" if training split parameters, else along "data".
      params: float32 parameters.
      tokenizer: kept in the run's directory.
      paths: the data it was trained on; not opened, and perhaps no longer there.
    """

    run: settings.Run
    step: int
    model: Model
    mesh: Mesh
    params: Any
    tokenizer: Tokenizer
    paths: tuple[str, ...]


def load(workdir: pathlib.Path, step: int | None, overrides: Mapping[str, str] = _NONE) -> Trained:
    """Returns a checkpoint of a run, laid over the devices that are here.

    Args:
      workdir: the run's directory.
      step: updates made; None takes the latest checkpoint.
      overrides: fields of the depth policy that are to be other than in training, as typed.

    Raises:
      ConfigError, CheckpointError: if it is no run's directory, holds no such checkpoint, or the
        overrides make another model of it.
    """
    trained = directory.recorded(workdir)
    run = config.override(trained, overrides)
    paths = run.data.path or (str(workdir / directory.DATA),)
    checkpoints = Checkpoints(workdir / "checkpoints", run.checkpoint.keep, is_read_only=True)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(step)
        meta = checkpoints.meta(step)
        vocab = meta["model"]["vocab_size"]
        ours, theirs = (each.model.sized(vocab) for each in (run, trained))
        specs = model.specs(ours)
        if overrides and params.abstract(specs) != params.abstract(model.specs(theirs)):
            typed = changes.typed(overrides)
            raise ConfigError(f"{typed}: makes a model with other parameters than {workdir} has")
        tokenizer = directory.tokenizer(workdir, run)
        if (saved := meta["data"].get("tokenizer")) not in (None, tokenizer.name):
            raise CheckpointError(
                f"{workdir}: has the tokenizer {tokenizer.name}, its checkpoints {saved}; put back "
                f"what {directory.TOKENIZER}/ held"
            )
        # Rows go wherever they divide, and so do parameters that training split.
        count = max(n for n in range(1, jax.device_count() + 1) if run.train.batch_size % n == 0)
        is_split = any(run.mesh.sizes[axis] != 1 for axis in ("fsdp", "tensor", "expert"))
        sizes = {"data": 1, "fsdp": count} if is_split else {"data": count, "fsdp": 1}
        here = sharding.MeshConfig(**sizes, rules=run.mesh.rules)
        mesh = sharding.make_mesh(here, jax.devices()[:count])
        where = sharding.fitting(specs, mesh, here.rules)
        weights = checkpoints.restore(step, {"params": params.abstract(specs, where)})["params"]
    run = dataclasses.replace(run, mesh=here)
    return Trained(run, step, ours, mesh, weights, tokenizer, paths)


def save(
    run: settings.Run, vocab_size: int, weights: Any, tokenizer: Tokenizer, place: pathlib.Path
) -> None:
    """Writes parameters as step 0 of a run: to score, and for `train.init_from`.

    Args:
      run: whose model they are of.
      vocab_size: rows of its embedding.
      weights: the parameters.
      tokenizer: of its text.
      place: a new directory.

    Raises:
      ConfigError: if it holds something.
    """
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"--output={place}: is not empty; give a new directory")
    directory.open_workdir(place)
    directory.record(run, {}, tokenizer, place)
    checkpoints = Checkpoints(place / "checkpoints", keep=1)
    data = {"fingerprint": "", "tokenizer": tokenizer.name}
    checkpoints.save(0, {"params": weights}, directory.identity(run, vocab_size, data))
    checkpoints.close()
