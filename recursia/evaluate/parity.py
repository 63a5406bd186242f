"""Compares a model, or an optimizer, with the results of the authors' code on the same weights.

A parity file is an `.npz` of arrays: `family`, `config` (JSON), `tokens`, `param/NAME`,
`alias/NAME` (the name that owns a shared tensor), `logits`, losses, `grad/NAME`, `selected/r`. A
file of an optimizer has gradients [steps ...] and `param_after/CASE/NAME` instead of tokens,
logits and losses. A file of layers has their outputs and matrices. `recursia.evaluate.recipe` says
what one of a recipe has besides.
"""

import dataclasses
import functools
import importlib
import math
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from recursia import model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.convert import reference
from recursia.errors import ConfigError, DataError, UserError
from recursia.evaluate import recipe

# Tolerances of `Parity`, for float32 on a CPU.
LOGITS, LOSSES, GRADIENTS = 2e-5, 1e-5, 1e-4
UPDATES, ROUNDED_UPDATES = 2.5e-7, 1e-2
RECIPES, TRAINED = 1e-6, 1e-4
MOST_ARRAYS, MOST_BYTES = 10_000, 1 << 33  # of a file, uncompressed
_MODEL = {"tokens", "logits", "cross_entropy"}
# What a file that does not fit its family makes a reference raise.
_OF_ANOTHER = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError),
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between a model, or an optimizer, and the authors' code.

    The difference is 0 for a quantity that the file does not hold.

    Attributes:
      logits_max_abs: of any logit; of any output or weight of a file of layers.
      loss_max_abs: of any loss, in nats per token.
      gradient_max_rel: of any gradient entry, over its tensor's largest entry. Of a tensor whose
        gradient vanishes (`Case.vanishing`), the entry itself over the largest of all tensors.
      is_routed_alike: whether every recursion kept the same tokens.
      update_max_abs: of any parameter, momentum or direction after steps of an optimizer.
      rounded_update_max_abs: of the same if the authors multiply in bfloat16.
      recipe_max_rel: of any multiplier, and of any parameter's initial mean and deviation, learning
        rate, weight decay and eps.
      trained_max_abs: of any parameter of a model after steps of training.
    """

    logits_max_abs: float = 0.0
    loss_max_abs: float = 0.0
    gradient_max_rel: float = 0.0
    is_routed_alike: bool = True
    update_max_abs: float = 0.0
    rounded_update_max_abs: float = 0.0
    recipe_max_rel: float = 0.0
    trained_max_abs: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every difference is within its tolerance."""
        return (
            self.logits_max_abs < LOGITS
            and self.loss_max_abs < LOSSES
            and self.gradient_max_rel < GRADIENTS
            and self.is_routed_alike
            and self.update_max_abs < UPDATES
            and self.rounded_update_max_abs < ROUNDED_UPDATES
            and self.recipe_max_rel < RECIPES
            and self.trained_max_abs < TRAINED
        )


def read(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a parity file.

    Raises:
      DataError: if the file is missing or is not a parity file.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not an .npz of plain arrays ({said})") from None
    is_model = str(arrays.get("family")) not in (*reference.OPTIMIZERS, *reference.LAYERS)
    if missing := {"family", "config", *(_MODEL if is_model else ())} - arrays.keys():
        raise DataError(f"{path}: not a parity file; it has no {', '.join(sorted(missing))}")
    return arrays


def _check_size(path: str) -> None:
    """Raises ValueError for a file whose arrays would not fit, before any is read."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        size = sum(member.file_size for member in members)
        if len(members) > MOST_ARRAYS or size > MOST_BYTES:
            raise ValueError(
                f"{len(members)} arrays of {size} bytes; at most {MOST_ARRAYS} of {MOST_BYTES} are "
                "read"
            )
        for member in members:
            with file.open(member) as raw:
                version = np.lib.format.read_magic(raw)
                read = np.lib.format.read_array_header_1_0
                read = np.lib.format.read_array_header_2_0 if version != (1, 0) else read
                shape, _, dtype = read(raw)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} has shape {shape} in {member.file_size} bytes")


def check(path: str) -> Parity:
    """Returns the differences between our results and a parity file.

    Raises:
      DataError: if the file is not readable.
      ConfigError: for a family or an option that recursia lacks.
    """
    file = read(path)
    family = str(file["family"])
    if family not in reference.FAMILIES:
        known = ", ".join(reference.FAMILIES)
        raise ConfigError(f"{path}: no family {family!r}; families are {known}")
    module = f"{reference.__name__}.{reference.FAMILIES[family]}"
    try:
        case = importlib.import_module(module).case(file)
        if isinstance(case, reference.Layer):
            return _compare_layer(case)
        is_model = isinstance(case, reference.Case)
        return _compare(file, case) if is_model else _compare_updates(case)
    except KeyError as error:
        raise DataError(f"{path}: {error} is missing; the file does not fit its family") from None
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None
    except _OF_ANOTHER as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{path}: the file does not fit its family: {message}") from None


def _compare(file: dict[str, np.ndarray], case: reference.Case) -> Parity:
    params = jax.tree.map(jnp.asarray, case.params(reference.under(file, "param/")))
    _check_shapes(params, case.config)
    graded = lambda params: _graded(params, case.tokens, case.targets, case.options, case.config)
    (total, (logits, nats, aux)), ours = graded(params)
    values = [("total_loss", total), ("cross_entropy", nats), *case.losses(aux)]
    losses_off = [abs(float(value) - float(file[name])) for name, value in values if name in file]
    arrays = [("logits", logits), *case.arrays(aux, params)]
    logits_off = [np.abs(np.asarray(a) - file[name]).max() for name, a in arrays if name in file]
    gradients_off = _gradients_apart(
        ours, case.params(reference.under(file, "grad/")), case.vanishing
    )
    recipe_off = trained_off = 0.0
    if case.recipe is not None:
        recipe_off = recipe.recipe_apart(file, case, case.recipe)
        apart = recipe.training_apart(file, case, case.recipe, graded)
        losses_off.append(apart[0])
        gradients_off, trained_off = float(np.max([gradients_off, apart[1]])), apart[2]
    return Parity(
        logits_max_abs=float(np.max(logits_off)),
        loss_max_abs=float(np.max(losses_off)),
        gradient_max_rel=gradients_off,
        is_routed_alike=all(
            np.array_equal(np.argwhere(mask), _places(file[f"selected/{r}"]))
            for r, mask in case.kept(aux)
            if f"selected/{r}" in file
        ),
        recipe_max_rel=recipe_off,
        trained_max_abs=trained_off,
    )


def _compare_updates(case: reference.Updates) -> Parity:
    return Parity(update_max_abs=_apart(case.exact), rounded_update_max_abs=_apart(case.rounded))


def _compare_layer(case: reference.Layer) -> Parity:
    return Parity(
        logits_max_abs=_apart(case.outputs),
        loss_max_abs=_apart(case.losses),
        gradient_max_rel=float(np.max([_relative(*pair) for pair in case.gradients])),
    )


def _relative(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-12))


def _gradients_apart(
    ours: dict[str, Any], theirs: dict[str, Any], vanishing: frozenset[str]
) -> float:
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))

    def apart(path: Any, ours: Any, theirs: Any) -> float:
        if path[-1].key in vanishing:
            return float(max(np.abs(ours).max(), np.abs(theirs).max())) / largest
        return _relative(ours, theirs)

    return float(np.max(jax.tree.leaves(jax.tree.map_with_path(apart, ours, theirs))))


def _apart(pairs: Any) -> float:
    return float(np.max([0.0, *(np.abs(ours - theirs).max() for ours, theirs in pairs)]))


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, has_aux=True)
def _graded(
    params: dict[str, Any], tokens: Array, targets: Array, options: dict[str, Any], config: Model
) -> Any:
    """Returns the loss, its terms and its gradient; files of one shape share a program."""
    out = model.apply(params, tokens, config, mode="train", **options)
    logits = model.logits(params, out.hidden, config)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    nats = nats.mean(where=targets >= 0)
    return nats + sum(out.aux.losses.values()), (logits, nats, out.aux)


def _check_shapes(params: dict[str, Any], config: Model) -> None:
    """Raises ConfigError if the shape of an array is not the configuration's."""
    wanted = jax.tree.leaves_with_path(parameters.abstract(model.specs(config)))
    for (path, spec), leaf in zip(wanted, jax.tree.leaves(params), strict=True):
        if leaf.shape != spec.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ConfigError(
                f"{name}: the file's array has shape {leaf.shape}, the configuration's {spec.shape}"
            )


def _places(index: np.ndarray) -> np.ndarray:
    """Returns sorted positions [B C] as pairs (row, position)."""
    return np.array([(b, t) for b, row in enumerate(index) for t in row])
