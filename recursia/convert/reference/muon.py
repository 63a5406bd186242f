"""Updates by Muon of `torch.optim` and of Xmodel-2.5, from given gradients, and by ours.

Their matrices are [out, in]. PyTorch keeps a mean of gradients, (1 - momentum) times the sum that
Xmodel-2.5 and we keep; the orthogonalised direction of both is the same.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from recursia.convert.reference import Updates
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.optimizers.muon import Muon, orthogonal
from recursia.params import Spec, ones

_CODES = ("torch", "xmodel")
_PRECISIONS: dict[str, Literal["bfloat16", "float32"]] = {"f32": "float32", "bf16": "bfloat16"}
_SCALES: dict[str, Literal["match_adamw", "original"]] = {
    "original": "original",
    "match_rms_adamw": "match_adamw",
}


def case(file: Arrays) -> Updates:
    """Returns our parameters, momentum and directions of every case of a file, each with theirs.

    Raises:
      ConfigError: for a case with an option that has no counterpart here.
    """
    config = json.loads(str(file["config"]))
    pairs: dict[str, list[tuple[Array, np.ndarray]]] = {name: [] for name in _PRECISIONS}
    for name, options in config["cases"].items():
        is_torch = options["code"] == "torch"
        names = [*config["matrices"], *([] if is_torch else config["vectors"])]
        muon = _muon(name, options)
        pairs[options["newton_schulz"]] += _pairs(file, name, names, muon, is_torch)
    return Updates(exact=pairs["f32"], rounded=pairs["bf16"])


def _muon(name: str, options: Mapping[str, Any]) -> Muon:
    known = {"code", "newton_schulz", "lr", "weight_decay", "adjust_lr_fn", "nesterov"}
    if unknown := options.keys() - known - {"adamw_betas"}:
        raise ConfigError(f"{name}: {', '.join(sorted(unknown))} has no counterpart here")
    for field, choices in (("code", _CODES), ("newton_schulz", _PRECISIONS)):
        if options[field] not in choices:
            raise ConfigError(f"{name}.{field}: got {options[field]!r}, takes {', '.join(choices)}")
    b1, b2 = options.get("adamw_betas", (0.9, 0.95))
    scale = "original" if options["code"] == "torch" else "match_rms_adamw"
    return Muon(
        options["lr"],
        b1,
        b2,
        weight_decay=options["weight_decay"],
        clip_norm=0.0,
        nesterov=options.get("nesterov", True),
        precision=_PRECISIONS[options["newton_schulz"]],
        scale=_SCALES[options.get("adjust_lr_fn", scale)],
    )


def _pairs(
    file: Arrays, name: str, names: list[str], muon: Muon, is_torch: bool
) -> Iterator[tuple[Array, np.ndarray]]:
    """Yields (ours, theirs): parameters after each step, momentum, and the first direction.

    Directions are multiplied by the learning rate: so much they move parameters.
    """
    params = {n: jnp.asarray(file[f"param/{n}"].T) for n in names}
    grads = {n: jnp.asarray(np.moveaxis(file[f"grad/{n}"], 1, -1)) for n in names}
    specs = {n: Spec(p.shape, (None,) * p.ndim, ones) for n, p in params.items()}
    chain = muon.transform(specs, optax.constant_schedule(1.0))

    def step(carry: tuple[Any, Any], grads: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), after = jax.lax.scan(step, (params, chain.init(params)), grads)
    for n in names:
        yield jnp.moveaxis(after[n], -1, 1), file[f"param_after/{name}/{n}"]
    is_trace = lambda x: isinstance(x, optax.TraceState)
    (sums,) = (x.trace for x in jax.tree.leaves(state, is_leaf=is_trace) if is_trace(x))
    share = 1 - muon.momentum if is_torch else 1.0
    for n in names:
        if specs[n].matrix is None:
            continue
        yield share * sums[n].T, file[f"momentum_buffer/{name}/{n}"]
        (first,) = orthogonal(grads[n][:1], muon.iterations, muon.precision)
        rate = muon.learning_rate
        yield rate * first.T, np.float32(rate) * file[f"orthogonalised/{name}/{n}"]
