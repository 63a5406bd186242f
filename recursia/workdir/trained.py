"""A trained model, loaded from its run's directory or from elsewhere, or written as a run.

A checkpoint from elsewhere is a Hugging Face folder, a GGUF or a llama2.c file: it is read into
memory, and nothing is written.
"""

import contextlib
import dataclasses
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from recursia import buckets, changes, config, model, params, settings, sharding
from recursia.architecture import Model
from recursia.convert import arrival
from recursia.data.tokenizer import Tokenizer
from recursia.errors import CheckpointError, ConfigError
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints

_NONE: Mapping[str, str] = types.MappingProxyType({})
# Fields that evaluation of a checkpoint from elsewhere may change besides those of depth.
SCORING = ("model.dtype", "train.batch_size", "train.seq_len")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A loaded checkpoint.

    Attributes:
      run: its settings, with the mesh of this machine's devices.
      step: of the checkpoint; 0 for one from elsewhere.
      model: the model, at full depth.
      mesh: the devices, along "fsdp" if parameters were sharded in training, else along "data".
      params: float32 parameters.
      tokenizer: from the run's directory, or of the checkpoint.
      paths: directories of the training data, which may no longer exist; none for a checkpoint from
        elsewhere.
    """

    run: settings.Run
    step: int
    model: Model
    mesh: Mesh
    params: Any
    tokenizer: Tokenizer
    paths: tuple[str, ...]


def load(
    workdir: pathlib.Path, step: int | None = None, overrides: Mapping[str, str] = _NONE
) -> Trained:
    """Returns a checkpoint of a run or from elsewhere, sharded over this machine's devices.

    Args:
      workdir: the run's directory; or a Hugging Face folder, a `.gguf` or a `.bin` of llama2.c.
      step: of the run's checkpoint; None takes the latest.
      overrides: fields of the depth policy to change, as typed; of a checkpoint from elsewhere also
        those of `SCORING`.

    Raises:
      ConfigError, CheckpointError, DataError: if the place holds neither, the checkpoint does not
        exist or is damaged, or the overrides change the shapes of parameters.
    """
    if is_elsewhere(workdir):
        return _arrived(workdir, step, overrides)
    if not workdir.exists():
        raise ConfigError(
            f"{workdir}: is not there; give a run's directory, or a Hugging Face folder on this "
            "machine"
        )
    if not directory.is_run(workdir):
        raise ConfigError(
            f"{workdir}: holds neither a run (config.json, checkpoints) nor a checkpoint from "
            "elsewhere (config.json with model_type, safetensors); give one, or a .gguf or .bin"
        )
    trained = directory.recorded(workdir)
    run = config.override(trained, overrides)
    paths = run.data.path or (str(workdir / directory.DATA),)
    checkpoints = Checkpoints(workdir / "checkpoints", run.checkpoint.keep, is_read_only=True)
    with contextlib.closing(checkpoints):
        saved_step = checkpoints.choose(step)
        meta = checkpoints.meta(saved_step)
        vocab = meta["model"]["vocab_size"]
        ours, theirs = (each.model.sized(vocab) for each in (run, trained))
        specs = model.specs(ours)
        _check_same(ours, theirs, overrides, workdir)
        tokenizer = directory.tokenizer(workdir, run)
        if (saved := meta["data"].get("tokenizer")) not in (None, tokenizer.name):
            raise CheckpointError(
                f"{workdir}: has the tokenizer {tokenizer.name}, its checkpoints {saved}; restore "
                f"the saved {directory.TOKENIZER}/"
            )
        here, mesh = devices(run)
        where = sharding.fitting(specs, mesh, here.rules)
        abstract = {"params": params.abstract(specs, where)}
        weights = checkpoints.restore(saved_step, abstract)["params"]
    run = dataclasses.replace(run, mesh=here)
    return Trained(run, saved_step, ours, mesh, weights, tokenizer, paths)


def is_elsewhere(workdir: pathlib.Path) -> bool:
    """Returns whether a place holds a checkpoint from elsewhere, which none in a bucket is."""
    return not buckets.is_place(workdir) and arrival.is_there(workdir)


def elsewhere(place: pathlib.Path) -> tuple[Model, Tokenizer, Callable[[Any], Any]]:
    """Returns model and tokenizer of a checkpoint from elsewhere, and what reads its parameters.

    It takes the sharding of each of them.

    Raises:
      ConfigError, CheckpointError, DataError: if it is none that is read.
    """
    found = arrival.find(place)
    return found.config, arrival.tokenizer(found), found.params


def model_of(workdir: pathlib.Path) -> Model:
    """Returns the model of a run or of a checkpoint from elsewhere, without its parameters.

    Raises:
      ConfigError, CheckpointError, DataError: if the place holds neither.
    """
    return elsewhere(workdir)[0] if is_elsewhere(workdir) else directory.recorded(workdir).model


def _arrived(place: pathlib.Path, step: int | None, overrides: Mapping[str, str]) -> Trained:
    """Returns a checkpoint from elsewhere."""
    if step is not None:
        raise ConfigError(f"--step={step}: {place} is no run and has one checkpoint; leave it out")
    found = arrival.find(place)
    tokenizer = arrival.tokenizer(found)
    run = config.override(arrival.run(found), overrides, SCORING)
    _check_same(run.model, found.config, overrides, place)
    here, mesh = devices(run)
    weights = arrival.laid(found, mesh)
    run = dataclasses.replace(run, mesh=here)
    return Trained(run, 0, run.model, mesh, weights, tokenizer, ())


def settings_of(trained: Trained, workdir: pathlib.Path) -> settings.Run:
    """Returns settings with which a loaded checkpoint may be trained: the mesh is not this one's.

    Args:
      trained: the checkpoint.
      workdir: from where it was loaded.
    """
    is_run = not is_elsewhere(workdir)
    mesh = directory.recorded(workdir).mesh if is_run else sharding.MeshConfig(data=1, fsdp=-1)
    return dataclasses.replace(trained.run, mesh=mesh)


def _check_same(ours: Model, theirs: Model, overrides: Mapping[str, str], place: Any) -> None:
    """Refuses overrides that change the shapes of parameters."""
    if overrides and params.abstract(model.specs(ours)) != params.abstract(model.specs(theirs)):
        typed = changes.typed(overrides)
        raise ConfigError(f"{typed}: makes a model with other parameters than {place} has")


def devices(run: settings.Run) -> tuple[sharding.MeshConfig, Mesh]:
    """Returns the mesh on which a run's model is evaluated here.

    It takes as many devices as divide the rows of a batch; parameters that are sharded in training
    stay sharded.
    """
    count = max(n for n in range(1, jax.device_count() + 1) if run.train.batch_size % n == 0)
    is_split = any(run.mesh.sizes[axis] != 1 for axis in ("fsdp", "tensor", "expert"))
    sizes = {"data": 1, "fsdp": count} if is_split else {"data": count, "fsdp": 1}
    here = sharding.MeshConfig(**sizes, rules=run.mesh.rules)
    return here, sharding.make_mesh(here, jax.devices()[:count])


def save(
    run: settings.Run, vocab_size: int, weights: Any, tokenizer: Tokenizer, workdir: pathlib.Path
) -> None:
    """Writes parameters as step 0 of a run, for evaluation and for `train.init_from`.

    Args:
      run: settings of the model.
      vocab_size: rows of its embedding.
      weights: its parameters.
      tokenizer: of its text.
      workdir: a new directory.

    Raises:
      ConfigError: if the directory is not empty.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"--output={workdir}: is not empty; give a new directory")
    directory.open_workdir(workdir)
    directory.record(run, {}, tokenizer, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    data = {"fingerprint": "", "tokenizer": tokenizer.name}
    checkpoints.save(0, {"params": weights}, directory.identity(run, vocab_size, data))
    checkpoints.close()
