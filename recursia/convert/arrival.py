"""A checkpoint from elsewhere, found out by what lies there: settings, parameters, vocabulary."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import tokenizers
from jax.sharding import Mesh

import recursia.config
from recursia import jsonfile, model, settings, sharding
from recursia.architecture import Model
from recursia.convert import (
    gguf,
    huggingface,
    llama2c,
    loading,
    names,
    published,
    safetensors,
    vocabularies,
)
from recursia.convert.formats import OWN
from recursia.data.tokenizer import BPETokenizer, Tokenizer, from_spec
from recursia.errors import CheckpointError, ConfigError, DataError

_LENGTH = 2048  # tokens of a document, where the settings do not say


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What lies there.

    Attributes:
      kind: what it is, in a word.
      config: our model of it.
      params: from the sharding of each of our parameters, the parameters.
      tokenizer: the vocabulary inside the file, or the folder that has one.
      end_of_text: name of the token that ends a text, where it is not a usual one.
      length: tokens of a document, at most.
    """

    kind: str
    config: Model
    params: Callable[[Any], Any]
    tokenizer: tokenizers.Tokenizer | pathlib.Path
    end_of_text: str
    length: int


def is_there(place: pathlib.Path) -> bool:
    """Returns whether a place holds a checkpoint from elsewhere, whole or damaged, and no run."""
    if not place.is_dir():
        return place.is_file()
    try:
        theirs = _settings(place)
    except CheckpointError:
        theirs = {}
    if {"model", "train"} <= theirs.keys():
        return False
    named = {"model_type", "architectures"} & theirs.keys()
    return bool(named) or published.is_published(theirs) or any(_weights(place))


def find(place: pathlib.Path) -> Checkpoint:
    """Returns the checkpoint of a folder with `config.json` and safetensors, or of a file.

    Args:
      place: the folder; or a `.gguf`, or a folder with one; or a `.bin` of llama2.c.

    Raises:
      ConfigError, CheckpointError, DataError: if there is none, or one that is not read.
    """
    if place.is_dir():
        files = _weights(place)
        if (place / "config.json").exists() or [file.suffix for file in files] != [".gguf"]:
            return _folder(place)
        place = files[0]
    if not place.is_file():
        raise CheckpointError(f"{place}: is not there; give a folder or a file")
    if place.suffix == ".gguf":
        inside = gguf.Arrays(place)
        return _hugging(inside.settings, inside, inside.tokenizer())
    if place.suffix == ".bin":
        inside = llama2c.Arrays(place)
        found = _hugging(inside.settings, inside, place)
        return dataclasses.replace(found, end_of_text="<s>")
    raise CheckpointError(
        f"{place}: no kind of checkpoint ends so; give a folder with config.json and safetensors, "
        "a .gguf, or a .bin of llama2.c"
    )


def _weights(folder: pathlib.Path) -> list[pathlib.Path]:
    with contextlib.suppress(OSError):
        return sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".gguf"))
    return []


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what `config.json` says.

    Raises:
      CheckpointError: if it is missing, or no JSON object.
    """
    path = folder / "config.json"
    try:
        theirs = jsonfile.read(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from None
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path}: is no object; is it a model's?")
    return theirs


def _folder(folder: pathlib.Path) -> Checkpoint:
    theirs = _settings(folder)
    if published.is_published(theirs):
        config, params = published.read(theirs, safetensors.read(folder))
        _check_shapes(config, params)
        put = lambda where: loading.placed(params, where)
        return Checkpoint("published", config, put, folder, "", _LENGTH)
    if theirs.get("model_type") == OWN:
        config = recursia.config.build(
            Model, theirs.get("model"), f"{folder / 'config.json'}: model"
        )
        arrays = safetensors.read(folder)
        specs = dict(names.leaves(model.specs(config)))
        loading.check({name: spec.shape for name, spec in specs.items()}, arrays, specs)
        put = lambda where: loading.placed(_tree(config, arrays), where)
        return Checkpoint(OWN, config, put, folder, "", _length(theirs))
    huggingface.model_of(theirs)  # refuses an unknown architecture before files are looked at
    return _hugging(theirs, safetensors.read(folder), folder)


def _hugging(theirs: dict[str, Any], arrays: Any, tokenizer: Any) -> Checkpoint:
    family, config = huggingface.model_of(theirs)
    put = lambda where: loading.load(config, family, arrays, where)
    return Checkpoint(family, config, put, tokenizer, "", _length(theirs))


def _length(theirs: dict[str, Any]) -> int:
    found = theirs.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else _LENGTH


def _tree(config: Model, arrays: Any) -> Any:
    specs = model.specs(config)
    paths = [path for path, _ in names.leaves(specs)]
    return jax.tree.unflatten(jax.tree.structure(specs), [arrays[path] for path in paths])


def _check_shapes(config: Model, params: Any) -> None:
    """Refuses host arrays that are not of the model's shapes."""
    found = dict(names.leaves(params))
    for path, spec in names.leaves(model.specs(config)):
        if (shape := getattr(found.get(path), "shape", None)) != spec.shape:
            raise CheckpointError(
                f"{path}: comes as {shape}, and config.json asks for {spec.shape}; one is of "
                "another model"
            )


def tokenizer(found: Checkpoint, asked: str = "", end_of_text: str = "") -> Tokenizer:
    """Returns the tokenizer of a checkpoint.

    Args:
      found: the checkpoint.
      asked: what to take instead: a file or folder as `from_spec` takes, or a llama2.c vocabulary.
        Empty takes what lies inside the file, in the folder, or as `tok*.bin` beside a `.bin`.
      end_of_text: name of the token that ends a text; empty looks for a usual one.

    Raises:
      ConfigError, DataError: if there is none, or one with more ids than the model has rows.
    """
    end, rows = end_of_text or found.end_of_text, found.config.vocab_size
    inside = found.tokenizer
    if not asked and isinstance(inside, pathlib.Path) and inside.is_file():
        asked = _beside(inside)
    if not asked and isinstance(inside, tokenizers.Tokenizer):
        ours: Tokenizer = BPETokenizer(inside, "its vocabulary", end)
    elif (place := pathlib.Path(asked)).suffix == ".bin":
        ours = BPETokenizer(vocabularies.by_scores(place, rows), asked, end)
    else:
        is_own = asked in ("", "byte") or asked.startswith("bpe:")
        ours = from_spec(asked or str(found.tokenizer), lambda: iter(()), "" if is_own else end)
    if ours.vocab_size > rows:
        raise DataError(
            f"tokenizer: {ours.name} has {ours.vocab_size} ids, and the model {rows} rows; take "
            "the tokenizer that it was trained with"
        )
    return ours


def _beside(file: pathlib.Path) -> str:
    """Returns the one vocabulary of llama2.c that lies beside a checkpoint.

    Raises:
      ConfigError: if there is none, or more than one.
    """
    beside = sorted(place for place in file.parent.glob("tok*.bin") if place != file)
    if len(beside) != 1:
        raise ConfigError(
            f"{file}: holds no vocabulary, and {len(beside)} files tok*.bin lie beside it; put one "
            "there, or convert it with --tokenizer=FILE"
        )
    return str(beside[0])


def run(
    found: Checkpoint,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    seq_len: int = 0,
    batch_size: int = 8,
) -> settings.Run:
    """Returns settings with which a checkpoint is evaluated, as those of a run.

    Args:
      found: the checkpoint.
      dtype: compute dtype.
      seq_len: tokens of a sequence; 0 takes the model's, at most 2048.
      batch_size: sequences scored at a time.

    Raises:
      ConfigError: for settings that do not go together.
    """
    config = dataclasses.replace(found.config, dtype=dtype)
    train = settings.Train(
        num_steps=1000, batch_size=batch_size, seq_len=seq_len or min(found.length, _LENGTH)
    )
    data = settings.Data(text=("bundled:train",))
    mesh = sharding.MeshConfig(data=1, fsdp=-1)
    try:
        return settings.Run(model=config, data=data, train=train, mesh=mesh)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None


def laid(found: Checkpoint, mesh: Mesh | None = None) -> Any:
    """Returns a checkpoint's parameters, laid over the devices of a mesh.

    Args:
      found: the checkpoint.
      mesh: of the devices; None takes all along "fsdp".

    Raises:
      CheckpointError: for arrays that are not those of the model.
    """
    layout = sharding.MeshConfig(data=1, fsdp=-1)
    specs, mesh = model.specs(found.config), mesh or sharding.make_mesh(layout)
    return found.params(sharding.fitting(specs, mesh, layout.rules))
