"""Learning rates and updates of Xmodel-2.5, whose decay is a new job with Muon, and ours.

The job of the decay keeps weights and nothing of AdamW's state. Their matrices are [out, in].
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
from recursia.learning_rate import factor
from recursia.optimizers.adamw_to_muon import AdamWToMuon
from recursia.params import Spec, ones
from recursia.settings import Schedule

_Pairs = list[tuple[Array, np.ndarray]]
_PRECISIONS: dict[str, Literal["bfloat16", "float32"]] = {"f32": "float32", "bf16": "bfloat16"}


def case(file: Arrays) -> Updates:
    """Returns our parameters and learning rates by step, each with theirs.

    Raises:
      ConfigError: for jobs other than a stable one with AdamW and a decay with Muon.
    """
    config = json.loads(str(file["config"]))
    stable, decay = config["stages"]
    if (stable["optimizer"], decay["optimizer"]) != ("adam", "muon"):
        raise ConfigError(f"stages: {stable['optimizer']}, {decay['optimizer']}, not adam, muon")
    schedule, num_steps = _joined(stable, decay)
    rates = [pair for name in config["schedules"] for pair in _rates(file, name, config)]
    pairs: dict[str, _Pairs] = {name: [] for name in _PRECISIONS}
    for name, found in pairs.items():
        for param in (n.removeprefix("param/") for n in file if n.startswith("param/")):
            found += _pairs(file, name, param, stable, schedule, num_steps)
    return Updates(exact=rates + pairs["f32"], rounded=pairs["bf16"])


def _joined(stable: Mapping[str, Any], decay: Mapping[str, Any]) -> tuple[Schedule, int]:
    """Returns the schedule of two jobs as that of one, and the step at which it ends."""
    one = _schedule(decay)
    num_steps = stable["iterations"] + decay["lr_decay_iters"]
    fraction = decay["lr_wsd_decay_iters"] / num_steps
    fields = (stable["lr_warmup_iters"], fraction, one.final_fraction, one.decay_shape)
    return Schedule("wsd", *fields), num_steps


def _schedule(job: Mapping[str, Any]) -> Schedule:
    if job["lr_decay_style"] == "constant":
        return Schedule("constant", job["lr_warmup_iters"])
    style = (job["lr_decay_style"], job["lr_wsd_decay_style"])
    if style != ("WSD", "exponential"):
        raise ConfigError(f"lr_decay_style: {' '.join(style)} has no counterpart here")
    fraction = job["lr_wsd_decay_iters"] / job["lr_decay_iters"]
    final = job["min_lr"] / job["lr"]
    return Schedule("wsd", job["lr_warmup_iters"], fraction, final, "exponential")


def _rates(file: Arrays, name: str, config: Mapping[str, Any]) -> Iterator[tuple[Array, Any]]:
    """Yields the learning rates of embeddings, of AdamW's and of Muon's parameters of one job."""
    job = config["schedules"][name]
    along = jax.vmap(factor(_schedule(job), job["lr_decay_iters"]))
    factors = along(jnp.asarray(file[f"schedule/{name}/iteration"]))
    for column, peak in enumerate((job["decoupled_lr"], job["lr"], job["lr"])):
        yield peak * factors, file[f"schedule/{name}/lr"][:, column]


def _pairs(
    file: Arrays, case: str, name: str, job: Mapping[str, Any], schedule: Schedule, num_steps: int
) -> Iterator[tuple[Array, np.ndarray]]:
    """Yields a parameter after each step, and its learning rate by step."""
    is_embedding = name.startswith("embedding.")
    optimizer = AdamWToMuon(
        job["decoupled_lr"] if is_embedding else job["lr"],
        job["adam_beta1"],
        job["adam_beta2"],
        job["adam_eps"],
        job["weight_decay"],
        clip_norm=0.0,
        precision=_PRECISIONS[case],
    )
    param, grads = (jnp.asarray(file[f"{kind}/{name}"]) for kind in ("param", "grad"))
    if param.ndim == 2 and not is_embedding:
        param, grads = param.mT, grads.mT
    axes = ("vocab" if is_embedding else None, *(None,) * (param.ndim - 1))
    along = factor(schedule, num_steps)
    spec = Spec(param.shape, axes, ones, is_decayed=param.ndim == 2)
    chain = optimizer.transform({"w": spec}, along, schedule.decay_start(num_steps))

    def step(carry: tuple[Any, Any], grad: Array) -> tuple[tuple[Any, Any], Array]:
        updates, state = chain.update({"w": grad}, carry[1], carry[0])
        params: Any = optax.apply_updates(carry[0], updates)
        return (params, state), params["w"]

    start = {"w": param}
    _, after = jax.lax.scan(step, (start, chain.init(start)), grads)
    yield after.mT if spec.matrix else after, file[f"param_after/{case}/{name}"]
    rates: Any = optimizer.learning_rate * jax.vmap(along)(jnp.arange(len(grads)))
    yield rates, file[f"lr/{name}"]
