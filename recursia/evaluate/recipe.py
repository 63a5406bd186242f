"""Compares a recipe, and the steps of training that follow it, with those of the authors' code.

A parity file of a recipe has, of each of the parameters `recipe/names` (JSON), `recipe/init_mean`,
`init_std`, `lr`, `weight_decay` and `eps`; `multiplier/NAME`; and of `steps` steps on its tokens
`step_loss`, before each and after the last, `step_grad_norm`, before clipping, and
`param_after/NAME`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from recursia import model
from recursia.convert import reference
from recursia.params import Params, Spec, normal

Arrays = Mapping[str, np.ndarray]
Graded = Callable[[Params], tuple[Any, Params]]  # ((loss, ...), gradients) of parameters


def recipe_apart(file: Arrays, case: reference.Case, recipe: reference.Recipe) -> float:
    """Returns the largest relative difference of a multiplier, or of a parameter's settings."""
    specs = model.specs(case.config)
    ours = _settings(specs, recipe) | _initial(specs)
    apart = [
        _relative(value, file[f"multiplier/{name}"])
        for name, value in recipe.multipliers.items()
        if f"multiplier/{name}" in file
    ]
    for name in ours:
        if f"recipe/{name}" in file:
            theirs = _of_parameters(file, case, file[f"recipe/{name}"])
            apart += jax.tree.leaves(jax.tree.map(_relative, ours[name], theirs))
    return float(np.max([0.0, *apart]))


def training_apart(
    file: Arrays, case: reference.Case, recipe: reference.Recipe, graded: Graded
) -> tuple[float, float, float]:
    """Returns the largest differences of losses, of gradient norms, relative, and of parameters.

    Parameters that the file leaves out are not compared.

    Args:
      file: the arrays.
      case: of the file.
      recipe: of the case.
      graded: of the parameters, the loss first.
    """
    starts = {name: value for name, value in file.items() if name.startswith("param/")}
    after = {name: file.get(name.replace("param/", "param_after/", 1)) for name in starts}
    ends = {name: starts[name] if end is None else end for name, end in after.items()}
    held = {name: np.full(starts[name].shape, end is not None) for name, end in after.items()}
    params, theirs, compared = (_read(file, case, arrays) for arrays in (starts, ends, held))
    losses, norms, ours = _trained(params, case, recipe, graded, int(file["steps"]))
    off = lambda a, b, held: (np.abs(np.asarray(a) - b) * held).max()
    apart = jax.tree.map(off, ours, theirs, compared)
    return (
        float(np.abs(losses - file["step_loss"]).max()),
        float(_relative(norms, file["step_grad_norm"])),
        float(np.max(jax.tree.leaves(apart))),
    )


def _trained(
    params: Params,
    case: reference.Case,
    recipe: reference.Recipe,
    graded: Graded,
    num_steps: int,
) -> tuple[np.ndarray, np.ndarray, Params]:
    """Returns losses and norms of gradients by step, and the parameters after the last."""
    specs, steady = model.specs(case.config), optax.constant_schedule(1.0)
    chain = recipe.optimizer.transform(specs, steady)
    state, losses, norms = jax.jit(chain.init)(params), [], []

    @jax.jit
    def update(params: Params, state: Any, grads: Params) -> tuple[Params, Any, Array]:
        updates, state = chain.update(grads, state, params)
        moved: Any = optax.apply_updates(params, updates)
        return moved, state, optax.tree.norm(grads)

    for _ in range(num_steps):
        (loss, *_), grads = graded(params)
        params, state, norm = update(params, state, grads)
        losses.append(loss)
        norms.append(norm)
    (loss, *_), _ = graded(params)
    return np.array([*losses, loss]), np.array(norms), params


def _settings(specs: PyTree[Spec], recipe: reference.Recipe) -> dict[str, PyTree]:
    """Returns the settings with which each parameter trains; eps by entry of its bank."""
    optimizer = recipe.optimizer
    rate = lambda spec: optimizer.learning_rate * spec.lr_scale * spec.scales.rate
    decay = lambda spec: optimizer.weight_decay * spec.scales.decay * spec.is_decayed

    def eps(spec: Spec) -> np.ndarray:
        size = np.asarray(optimizer.eps * np.asarray(spec.scales.gradient))
        return size.reshape(size.shape + (1,) * ((len(spec.shape) - 1) * size.ndim))

    kinds = {"lr": rate, "weight_decay": decay, "eps": eps}
    return {name: jax.tree.map(of, specs) for name, of in kinds.items()}


def _initial(specs: PyTree[Spec]) -> dict[str, PyTree]:
    """Returns mean and standard deviation of each parameter's initial entries.

    Entries that are no constant are compared with normal ones of the same keys: they have to be
    a multiple of them, which is their standard deviation.
    """

    def unit(spec: Spec) -> Spec:
        lead = spec.bank
        one = Spec(spec.shape[lead:], spec.axes[lead:], normal(1.0))
        return one.stack(spec.shape[:lead], spec.axes[:lead])

    @jax.jit
    def drawn(key: Array) -> PyTree:
        of = lambda spec: spec.init(key, spec.shape, jnp.float32)
        return jax.tree.map(lambda spec: (spec.scales.init * of(spec), of(unit(spec))), specs)

    def moments(spec: Spec, pair: tuple[Array, Array]) -> tuple[float, float]:
        ours, normals = map(np.asarray, pair)
        if ours.min() == ours.max():
            return float(ours.min()), 0.0
        std = float((ours / normals).mean())
        return (0.0, std) if np.allclose(ours, std * normals, 1e-5) else (np.nan, np.nan)

    found = jax.tree.map(moments, specs, drawn(jax.random.key(0)))
    part = lambda number: jax.tree.map(lambda _, pair: pair[number], specs, found)
    return {"init_mean": part(0), "init_std": part(1)}


def _of_parameters(file: Arrays, case: reference.Case, values: np.ndarray) -> Params:
    """Returns a tree whose arrays are filled with the numbers of parameters."""
    names = json.loads(str(file["recipe/names"]))
    pairs = {f"param/{name}": value for name, value in zip(names, values, strict=True)}
    return _read(file, case, {n: np.full(file[n].shape, value) for n, value in pairs.items()})


def _read(file: Arrays, case: reference.Case, arrays: Arrays) -> Params:
    """Returns our tree of arrays by the names of parameters, those of shared ones too."""
    shared = {name: value for name, value in file.items() if name.startswith("alias/")}
    return case.params(reference.under({**arrays, **shared}, "param/"))


def _relative(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))
