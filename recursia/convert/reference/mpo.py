"""Layers whose matrix is a product of tensors, as the authors' code of MPO sharing computes them.

Its tensors are [bond, output factor, input factor, bond], named `tensor_set.K` of a layer. A file
has a dense matrix, its tensors at full and at cut bonds with what the layer computes, and a chain
of layers that share a tensor.
"""

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia.convert import reference
from recursia.convert.reference.trees import Arrays
from recursia.sharing.tensors import product, shapes, split

Pairs = list[tuple[Array, np.ndarray]]
SET = ".tensor_set."


def case(file: Arrays) -> reference.Layer:
    """Returns what the layers of a file compute, beside the file's arrays.

    Raises:
      ValueError: if a tensor has not the shape that the configuration says.
    """
    config = json.loads(str(file["config"]))
    outputs, inputs = config["mpo_input_shape"], config["mpo_output_shape"]  # theirs, ours
    case = reference.Layer([], [], [])
    for name, most in (("full", 0), ("truncated", config["truncate_num"])):
        if f"{name}/output" in file:
            _layer(file, name, inputs, outputs, most, case)
    case.outputs.extend(_spectra(file, inputs, outputs))
    if "chain/output" in file:
        _chain(file, config["chain_shape"], config["chain_truncate_num"], case)
    return case


def _layer(
    file: Arrays,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    most: int,
    case: reference.Layer,
) -> None:
    """Adds one layer at the bonds of its tensors."""
    tensors = [_ours(file[f"{name}/core/{k}"]) for k in range(len(inputs))]
    _check_shapes(tensors, inputs, outputs, most, name)
    layer = lambda tensors, bias, x: x @ product(tensors) + bias
    arguments = tensors, jnp.asarray(file["bias"]), jnp.asarray(file["input"])
    (loss, y), grads = _graded(layer, file["target"], arguments)
    again = product(split(jnp.asarray(file["dense"].T), inputs, outputs, most))
    rebuilt = file[f"{name}/rebuilt"].T
    case.outputs.extend(
        [(y, file[f"{name}/output"]), (product(tensors), rebuilt), (again, rebuilt)]
    )
    case.losses.append((loss, file[f"{name}/loss"]))
    by_tensor, bias, x = grads
    theirs = [_ours(file[f"{name}/grad_core/{k}"]) for k in range(len(tensors))]
    case.gradients.extend((a, np.asarray(b)) for a, b in zip(by_tensor, theirs, strict=True))
    case.gradients.extend([(bias, file[f"{name}/grad_bias"]), (x, file[f"{name}/grad_input"])])


def _spectra(file: Arrays, inputs: Sequence[int], outputs: Sequence[int]) -> Pairs:
    """Returns the singular values of the dense matrix at every bond."""
    count, found = len(inputs), []
    order = [axis for k in range(count) for axis in (k, count + k)]
    tensor = jnp.asarray(file["dense"].T).reshape(*inputs, *outputs).transpose(order)
    for k in range(1, count):
        if (theirs := file.get(f"bond_spectrum/{k}")) is not None:
            rows = math.prod(inputs[:k]) * math.prod(outputs[:k])
            values = jnp.linalg.svd(tensor.reshape(rows, -1), compute_uv=False)
            found.append((values[: len(theirs)], theirs))
    return found


def _chain(file: Arrays, shape: Sequence[int], most: int, case: reference.Layer) -> None:
    """Adds layers one after the other, whose shared tensors are one array each."""
    owner = reference.aliases(file)
    names = [name.removeprefix("param/") for name in file if name.startswith("param/")]
    params = {name: jnp.asarray(file[f"param/{name}"]) for name in names}
    layers = list(dict.fromkeys(name.partition(SET)[0] for name in names if SET in name))

    def tensors(params: dict[str, Array], layer: str) -> list[Array]:
        own = [f"{layer}{SET}{k}" for k in range(len(shape))]
        return [_ours(params[owner.get(name, name)]) for name in own]

    def run(params: dict[str, Array], x: Array) -> Array:
        for layer in layers:
            x = x @ product(tensors(params, layer)) + params[f"{layer}.bias"]
        return x

    for number, layer in enumerate(layers):
        _check_shapes(tensors(params, layer), shape, shape, most, layer)
        theirs = file.get(f"chain/rebuilt/{number}")
        if theirs is not None:
            case.outputs.append((product(tensors(params, layer)), theirs.T))
    x = jnp.asarray(file["chain/input"])
    (loss, y), grads = _graded(run, file["chain/target"], (params, x))
    case.outputs.append((y, file["chain/output"]))
    case.losses.append((loss, file["chain/loss"]))
    case.gradients.extend((grads[0][name], file[f"grad/{name}"]) for name in names)


def _graded(layer: Any, target: np.ndarray, arguments: tuple[Any, ...]) -> Any:
    """Returns the mean squared error with a layer's outputs, and its gradients."""

    def loss(*given: Any) -> tuple[Array, Array]:
        y = layer(*given)
        return jnp.square(y - target).mean(), y

    every = tuple(range(len(arguments)))
    return jax.jit(functools.partial(jax.value_and_grad(loss, every, has_aux=True)))(*arguments)


def _ours(tensor: np.ndarray | Array) -> Float[Array, "Q I J P"]:
    return jnp.asarray(tensor).transpose(0, 2, 1, 3)


def _check_shapes(
    tensors: list[Array], inputs: Sequence[int], outputs: Sequence[int], most: int, where: str
) -> None:
    wanted = shapes(inputs, outputs, most)
    for number, (tensor, shape) in enumerate(zip(tensors, wanted, strict=True)):
        if tensor.shape != shape:
            raise ValueError(
                f"tensor {number} of {where}: the file's array has shape {tensor.shape}, the "
                f"configuration's {shape} (bond, input, output, bond)"
            )
