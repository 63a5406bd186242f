"""Arrays of a checkpoint, put straight where our sharding wants them.

Each device is given its own part of each parameter, cut from a view of the file: a second whole
copy of the model is never made.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from recursia import model
from recursia.architecture import Model
from recursia.convert import names
from recursia.convert.names import Place
from recursia.errors import CheckpointError
from recursia.params import Spec

Index = tuple[slice, ...] | None  # of a device's part
# Of a checkpoint, what no model reads: tables that follow from the settings.
_DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


def load(config: Model, family: str, source: Mapping[str, np.ndarray], where: Any) -> Any:
    """Returns float32 parameters of a family's checkpoint.

    Args:
      config: our model of it.
      family: one of `formats.FAMILIES`.
      source: their arrays by name, read when they are asked for.
      where: the sharding of each of our parameters.

    Raises:
      CheckpointError: if an array is missing, of another shape, or one that the model has not.
    """
    places = names.places(config, family)
    known = {place.name for place in places}
    spare = {"lm_head.weight"} if config.embed.is_tied else set()
    check({place.name: place.shape for place in places}, source, known | spare)
    by_path = names.by_path(places)
    specs = model.specs(config)
    paths = jax.tree.unflatten(jax.tree.structure(specs), [path for path, _ in names.leaves(specs)])
    put = lambda path, spec, place: _placed(spec, by_path[path], source, place)
    return jax.tree.map(put, paths, specs, where)


def check(
    shapes: Mapping[str, tuple[int, ...]],
    source: Mapping[str, np.ndarray],
    known: Iterable[str],
) -> None:
    """Refuses a checkpoint that is not the one of a model.

    Args:
      shapes: of the arrays that there must be.
      source: those that are there.
      known: names that there may be.

    Raises:
      CheckpointError: with what differs.
    """
    if missing := [name for name in shapes if name not in source]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{missing[0]}{more}: not among the {len(source)} arrays there are; config.json is of "
            "another model, or a file is missing"
        )
    for name, shape in shapes.items():
        if (got := source[name].shape) != shape:
            raise CheckpointError(
                f"{name}: has shape {got}, and config.json asks for {shape}; one is of another "
                "model"
            )
    known = set(known)
    extra = [n for n in source if n not in known and not n.endswith(_DERIVED)]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(
            f"{extra[0]}{more}: the model of config.json has no such array; it is of another model"
        )


def _placed(
    spec: Spec, places: list[Place], source: Mapping[str, np.ndarray], where: Sharding
) -> jax.Array:
    """Returns one parameter, each device's part read by itself."""
    read = lambda place: place.read(source[place.name])

    def part(index: Index) -> np.ndarray:
        index = index or (slice(None),) * len(spec.shape)
        if not spec.bank:
            return np.array(read(places[0])[index], np.float32)
        entries, inner = range(len(places))[index[0]], index[1:]
        return np.stack([np.asarray(read(places[e])[inner], np.float32) for e in entries])

    return made(spec.shape, where, part)


def made(shape: tuple[int, ...], where: Sharding, part: Callable[[Index], np.ndarray]) -> jax.Array:
    """Returns an array of which each device is given its part."""
    return jax.make_array_from_callback(shape, where, part)


def placed(tree: Any, where: Any) -> Any:
    """Returns a tree of arrays as float32 parameters where they belong."""
    put = lambda leaf, place: made(
        np.shape(leaf), place, lambda index: np.array(np.asarray(leaf)[index], np.float32)
    )
    return jax.tree.map(put, tree, where)
