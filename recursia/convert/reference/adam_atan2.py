"""Updates by Adam-atan2 of adam-atan2-pytorch, from given gradients, and by ours.

Their Muon with Adam-atan2 is our Muon of matrices and our Adam-atan2 of vectors.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from recursia.convert.reference import Updates
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.optimizers.adam_atan2 import AdamAtan2
from recursia.optimizers.muon import Muon
from recursia.optimizers.optimizer import Optimizer
from recursia.params import Spec, ones

_CODES = ("AdamAtan2", "foreach.AdamAtan2", "MuonAdamAtan2")
_OPTIONS = {"code", "weight_decay", "decoupled_wd", "cautious_factor", "cautious_wd", "a", "b"}


def case(file: Arrays) -> Updates:
    """Returns our parameters and moments of every case of a file, each with theirs.

    Raises:
      ConfigError: for a case with an option that has no counterpart here.
    """
    cases = json.loads(str(file["config"]))["cases"]
    pairs = [pair for name, options in cases.items() for pair in _pairs(file, name, options)]
    return Updates(exact=pairs, rounded=[])


def _pairs(
    file: Arrays, name: str, options: Mapping[str, Any]
) -> Iterator[tuple[Array, np.ndarray]]:
    """Yields (ours, theirs): parameters after each step, and the moments after the last."""
    names = [n.removeprefix("param/") for n in file if n.startswith("param/")]
    rates = jnp.asarray(file["lr"])
    for n in names:
        param, grads = jnp.asarray(file[f"param/{n}"]), jnp.asarray(file[f"grad/{n}"])
        ours = _optimizer(name, options, float(rates[0]), param.ndim)
        spec = Spec(param.shape, (None,) * param.ndim, ones)
        chain = ours.transform({"w": spec}, lambda step: rates[step])

        def step(
            carry: tuple[Any, Any], grad: Array, chain: Any = chain
        ) -> tuple[tuple[Any, Any], Array]:
            updates, state = chain.update({"w": grad}, carry[1], carry[0])
            params: Any = optax.apply_updates(carry[0], updates)
            return (params, state), params["w"]

        start = {"w": param}
        (_, state), after = jax.lax.scan(step, (start, chain.init(start)), grads)
        yield after, file[f"param_after/{name}/{n}"]
        if isinstance(ours, AdamAtan2):
            for label, moment in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
                yield optax.tree.get(state, moment)["w"], file[f"{label}/{name}/{n}"]


def _optimizer(name: str, options: Mapping[str, Any], rate: float, rank: int) -> Optimizer:
    """Returns the optimizer of a parameter with so many axes, at a learning rate of 1."""
    if unknown := options.keys() - _OPTIONS - {"betas"}:
        raise ConfigError(f"{name}: {', '.join(sorted(unknown))} has no counterpart here")
    if (code := options["code"]) not in _CODES:
        raise ConfigError(f"{name}.code: got {code!r}, takes {', '.join(_CODES)}")
    decay = options.get("weight_decay", 0.0)
    decay = decay / rate if options.get("decoupled_wd") else decay
    plain = {"weight_decay": decay, "clip_norm": 0.0}
    if code == "MuonAdamAtan2" and rank == 2:
        return Muon(1.0, nesterov=False, precision="float32", **plain)
    b1, b2 = options.get("betas", (0.9, 0.99))
    return AdamAtan2(
        1.0,
        b1,
        b2,
        **plain,
        a=options.get("a", 1.27),
        b=options.get("b", 1.0),
        cautious=options.get("cautious_factor", 1.0),
        has_cautious_decay=options.get("cautious_wd", False),
    )
