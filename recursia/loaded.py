"""A language model, loaded from where its parameters lie, or a preset with random ones."""

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from recursia import buckets, budget, config, console, settings, sharding
from recursia import model as forward
from recursia import params as parameters
from recursia.data.tokenizer import Tokenizer, bpe_size, from_spec
from recursia.language_model import LanguageModel, check_whole
from recursia.ranges import LARGEST_SEED
from recursia.workdir import trained


def load(
    place: str | os.PathLike[str],
    step: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Returns a trained model, laid over this machine's devices.

    Args:
      place: a run's directory, a Hugging Face folder, a `.gguf`, or a `.bin` of llama2.c.
      step: of a run's checkpoint; None takes the latest.
      overrides: fields of the depth policy to change, such as {"depth.exit_threshold": 0.5}; of a
        place that is no run also "train.seq_len" and "dtype".

    Raises:
      ConfigError, CheckpointError, DataError: if there is no such model, or it is damaged.

    Example:
      >>> import recursia
      >>> model = recursia.load("runs/tiny")  # of recursia train --config=mor:tiny
      >>> model.num_recursions, model.context_length
      (3, 128)
    """
    folder = buckets.path(os.path.expanduser(place))
    with console.doing(f"loading {folder}"), _quiet():
        found = trained.load(folder, step, _typed(overrides))
    return LanguageModel(
        str(place), found.model, found.params, found.tokenizer, found.run, found.mesh
    )


def preset(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    tokenizer: str = "",
) -> LanguageModel:
    """Returns a model with random parameters: those with which its training would start.

    Args:
      name: a shipped configuration such as "mor:tiny", or "FILE.py:PRESET".
      overrides: fields to change, such as {"depth.capacity": (1, 0.5, 0.25)}.
      seed: of the parameters.
      tokenizer: a `tokenizer.json`, or a folder with one; empty takes the configuration's if it is
        "byte", and none otherwise.

    Raises:
      ConfigError, DataError: for an unknown name or field, or a tokenizer that does not fit.

    Example:
      >>> import recursia
      >>> recursia.preset("looped:tiny", {"block.mlp_dim": 96}).num_params
      78208
    """
    check_whole("seed", seed, 0, LARGEST_SEED)
    run = config.load(str(name), _typed(overrides))
    words = _words(run.data, tokenizer)
    learned = run.data.tokenizer.startswith("bpe:") and not run.data.path
    size = words.vocab_size if words else bpe_size(run.data.tokenizer) if learned else 0
    ours = run.model.sized(budget.vocab_size(run, size or None))
    specs = forward.specs(ours)
    mesh_config, mesh = trained.devices(run)
    where = sharding.fitting(specs, mesh, mesh_config.rules)
    draw = jax.jit(lambda key: parameters.init(specs, key), out_shardings=where)
    with console.doing(f"drawing {name}"):
        params = draw(jax.random.key(seed))
    run = dataclasses.replace(run, mesh=mesh_config)
    return LanguageModel(name, ours, params, words, run, mesh)


def _words(data: settings.Data, asked: str) -> Tokenizer | None:
    """Returns the tokenizer that was asked for or needs no data, or None."""
    if not asked and (data.path or data.tokenizer != "byte"):
        return None
    return from_spec(asked or data.tokenizer, lambda: iter(()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from a notebook what the library of checkpoints says while it reads one."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sharding info not provided")
            yield
    finally:
        logger.setLevel(before)


def _typed(overrides: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns overrides as they would be typed."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            value = tuple(value.items())
        return str(getattr(value, "tolist", lambda: value)())

    return {name: text(value) for name, value in (overrides or {}).items()}
