"""Checkpoints of the authors' own code: a folder with safetensors and their settings.

`config.json` holds what their code is configured with: of Mixture-of-Recursions the sections
`llama`, `recursive`, `mor` and `kv_sharing`, of MoEUT the arguments of its constructor, of Huginn
its `config.json`. Arrays have the names of their `state_dict`.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from recursia.architecture import Model
from recursia.convert import safetensors
from recursia.convert.reference import huginn, moeut, mor
from recursia.errors import CheckpointError, ConfigError
from recursia.ranges import MOST_LAYERS

Arrays = Mapping[str, np.ndarray]


def is_published(theirs: Mapping[str, Any]) -> bool:
    """Returns whether settings are of one of these systems."""
    return _family(theirs) is not None


def _family(theirs: Mapping[str, Any]) -> str | None:
    if theirs.get("model_type") == "huginn_raven" or "n_layers_in_recurrent_block" in theirs:
        return "huginn"
    if "llama" in theirs and ("recursive" in theirs or "mor" in theirs):
        return "mor"
    return "moeut" if {"d_model", "ff_n_experts", "att_n_experts"} <= theirs.keys() else None


def read(
    theirs: dict[str, Any], stored: safetensors.Arrays | safetensors.Sharded
) -> tuple[Model, Any]:
    """Returns our configuration and parameters, as host arrays.

    Args:
      theirs: their settings.
      stored: their arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
      CheckpointError: if an array is missing or of another shape.
    """
    read = {"huginn": _huginn, "mor": _mor, "moeut": _moeut}[str(_family(theirs))]
    try:
        return read(theirs, stored)
    except KeyError as missing:
        raise CheckpointError(
            f"{missing.args[0]}: not among the {len(stored)} arrays there are, nor in config.json; "
            "it is of another model"
        ) from None
    except (ConfigError, CheckpointError):
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, IndexError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"config.json is of another model than the arrays ({said})") from None


def _mor(theirs: dict[str, Any], stored: Any) -> tuple[Model, Any]:
    owner = owners(theirs, stored)
    ours = mor.config(theirs, owner)
    return ours, mor.params(ours, {name: stored[of] for name, of in owner.items()})


def _moeut(theirs: dict[str, Any], stored: Arrays) -> tuple[Model, Any]:
    ours = moeut.config(theirs)
    return ours, moeut.params(ours, stored)


def _huginn(theirs: dict[str, Any], stored: Any) -> tuple[Model, Any]:
    is_tied = "lm_head.weight" not in stored
    recursions = int(theirs.get("mean_recurrence") or 32)
    trained = min(int(theirs.get("mean_backprop_depth") or 8), recursions)
    ours = huginn.config(theirs, stored, is_tied, recursions - trained, trained)
    shapes = {name: array.shape for name, array in stored.items()}
    return ours, functools.partial(huginn.params, ours, shapes)(stored)


def owners(theirs: Mapping[str, Any], stored: Any) -> dict[str, str]:
    """Returns the name under which each tensor is stored, by every name that it has.

    Shared tensors are stored once. Their other names stand in the file's metadata; where they do
    not, a recursion that lacks a tensor takes that of the first that has it.
    """
    found = {name: name for name in stored}
    found |= {name: of for name, of in stored.metadata.items() if of in stored}
    if "lm_head.weight" not in found and "model.embed_tokens.weight" in found:
        found["lm_head.weight"] = "model.embed_tokens.weight"
    for name, first in _repeats(theirs, list(found)):
        found.setdefault(name, found[first])
    return found


def _repeats(theirs: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, str]]:
    """Yields every name that a later recursion has for a tensor of the first one, with that."""
    recursive = theirs.get("recursive") or {}
    recursions, how = recursive.get("num_recursion") or 1, recursive.get("sharing") or "none"
    if recursions > MOST_LAYERS:
        raise ValueError(f"num_recursion {recursions}, takes at most {MOST_LAYERS}")
    first = 1 if how.startswith("middle_") else 0
    count = (int(theirs["llama"]["num_hidden_layers"]) - 2 * first) // recursions
    later = range(1, recursions if how != "none" else 1)
    for name in names:
        if match := re.fullmatch(r"model\.layers\.(\d+)(\.block\..*)", name):
            for layer in range(int(match[1]) + 1, first + recursions):
                yield f"model.layers.{layer}{match[2]}", name
        elif match := re.fullmatch(r"(model\.layers\.\d+\.block_list\.)0(\..*)", name):
            for recursion in later:
                yield f"{match[1]}{recursion}{match[2]}", name
        elif not theirs.get("mor") and (m := re.fullmatch(r"model\.layers\.(\d+)(\..*)", name)):
            place = int(m[1]) - first
            is_first = place < count if how.endswith("cycle") else place % recursions == 0
            if 0 <= place < count * recursions and is_first:
                step = count if how.endswith("cycle") else 1
                for recursion in later:
                    yield f"model.layers.{first + place + recursion * step}{m[2]}", name
