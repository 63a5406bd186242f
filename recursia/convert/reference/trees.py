"""Parameter trees of arrays under the authors' names, whose linear weights are `[out, in]`."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np

from recursia import model
from recursia.architecture import Model
from recursia.errors import ConfigError
from recursia.params import Params
from recursia.sharing import key_banks
from recursia.sharing.schedule import KEYS

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


def check_options(
    section: str, theirs: Mapping[str, object], required: Mapping[str, object]
) -> None:
    """Refuses options that have no counterpart here.

    Args:
      section: where the options stand, for messages.
      theirs: hyper-parameters.
      required: the one value that each of some options may have.

    Raises:
      ConfigError: for the first that has another value.
    """
    for option, value in required.items():
        got = theirs.get(option, value)
        if got != value and (got or value):
            raise ConfigError(f"{section}.{option}: got {got!r}, and only {value!r} is read here")


def narrow(value: object, kind: type[T]) -> T:
    """Returns `value`, which an adapter made with this class."""
    if not isinstance(value, kind):
        raise TypeError(f"got {type(value).__name__}, takes {kind.__name__}")
    return value


def next_tokens(tokens: np.ndarray) -> np.ndarray:
    """Returns the target of each of `tokens` [B T]: the next one, and -1 at the end of a row."""
    return np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)


def count(names: Iterable[str], pattern: str) -> int:
    """Returns how many layers have parameters: one more than the largest number in the names.

    Args:
      names: of parameters.
      pattern: regular expression whose one group is the number of a layer.
    """
    return 1 + max((int(m[1]) for name in names if (m := re.search(pattern, name))), default=-1)


def to_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns a projection to heads [D N H] from a linear weight."""
    return weight.T.reshape(weight.shape[1], num_heads, -1)


def from_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns a projection from heads [N H D] from a linear weight."""
    return weight.T.reshape(num_heads, -1, weight.shape[0])


def layer_norm(named: Arrays, name: str) -> Params:
    """Returns the parameters of a LayerNorm."""
    return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}


def embedding(config: Model, named: Arrays, table: str, head: str) -> Params:
    """Returns the embedding, and the head if it is not tied, by the names of their layers."""
    tied = {"table": named[f"{table}.weight"]}
    return tied if config.embed.is_tied else {**tied, "head": named[f"{head}.weight"]}


def stack(trees: Iterable[Params]) -> Params:
    """Returns trees with their leaves stacked along a new leading axis; `{}` for none."""
    trees = list(trees)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if trees else {}


def complete(sections: Params) -> Params:
    """Returns a parameter tree in which the sections that are not given are empty."""
    return {name: {} for name in ("prelude", "coda", "depth", "inject")} | sections


def banks(config: Model, block: Callable[[int], Params]) -> Params:
    """Returns the core's banks, each entry from the first step that uses it.

    Args:
      config: our model.
      block: from the number of a step, its weights by slot. Weights that only make keys and values
        are read only of steps that make some.
    """
    schedule, weights = config.schedule, functools.lru_cache(block)

    def stacked(slot: str, bank: str, specs: Params) -> Params:
        is_keys = bank.endswith(KEYS)
        steps = np.unique(schedule.owners) if is_keys else np.arange(schedule.num_steps)
        entry = schedule.entry(bank)[steps]
        firsts = [int(steps[entry == at][0]) for at in range(schedule.size(bank))]
        trees = [weights(step)[slot] for step in firsts]
        if isinstance(specs, dict):
            trees = [{name: tree[name] for name in specs} for tree in trees]
        return jax.tree.map(lambda s, *leaves: np.stack(leaves).reshape(s.shape), specs, *trees)

    core: Params = {}
    for slot, tree in model.specs(config)["core"].items():
        by_bank = key_banks.split(slot, tree, config.key_weights)
        core |= {bank: stacked(slot, bank, specs) for bank, specs in by_bank.items()}
    return key_banks.join(core)
