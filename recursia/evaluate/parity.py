"""Holds a model against what the authors' code computed on the same weights.

A file is an `.npz` of arrays: `family`, `config` (JSON), `tokens`, `param/NAME`, `alias/NAME` (the
name that owns a shared tensor), `logits`, losses, `grad/NAME`, `selected/r`.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recursia import model
from recursia.convert import reference
from recursia.errors import ConfigError, DataError

LOGITS, LOSSES, GRADIENTS = 2e-5, 1e-5, 1e-4  # float32 on a CPU; the last relative to the largest


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between a model and the authors' code.

    Attributes:
      logits_max_abs: of any logit.
      loss_max_abs: of any loss, in nats per token.
      gradient_max_rel: of any gradient entry, over its tensor's largest entry.
      is_routed_alike: whether every recursion kept the same tokens.
    """

    logits_max_abs: float
    loss_max_abs: float
    gradient_max_rel: float
    is_routed_alike: bool

    @property
    def ok(self) -> bool:
        """Whether every difference is within its tolerance."""
        return (
            self.logits_max_abs < LOGITS
            and self.loss_max_abs < LOSSES
            and self.gradient_max_rel < GRADIENTS
            and self.is_routed_alike
        )


def read(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file.

    Raises:
      DataError: if it is missing, or not such a file.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{path}: not an .npz of plain arrays ({error})") from None
    if missing := {"family", "config", "tokens", "logits", "total_loss"} - arrays.keys():
        raise DataError(f"{path}: not a parity file; it has no {', '.join(sorted(missing))}")
    return arrays


def check(path: str) -> Parity:
    """Returns how far our model is from what the file says.

    Raises:
      DataError: if the file is not readable.
      ConfigError: for a family or option that has no counterpart here.
    """
    file = read(path)
    family = str(file["family"])
    if family not in ("recursive", "mor"):
        raise ConfigError(f"{path}: family {family!r} is not read here; recursive and mor are")
    alias = {k.removeprefix("alias/"): str(v) for k, v in file.items() if k.startswith("alias/")}

    def under(prefix: str) -> dict[str, np.ndarray]:
        found = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
        # A shared tensor's gradient sums over its uses on both sides: any of its names will do.
        return found | {name: found[owner] for name, owner in alias.items()}

    try:
        named = under("param/")
        config = reference.config(
            json.loads(str(file["config"])), {name: alias.get(name, name) for name in named}
        )
        return _compare(file, config, reference.params(config, named), under("grad/"))
    except KeyError as error:
        raise DataError(f"{path}: {error} is missing; the file does not fit its family") from None


def _compare(
    file: dict[str, np.ndarray], config: model.Config, params: Any, grads: dict[str, np.ndarray]
) -> Parity:
    tokens = jnp.asarray(file["tokens"])

    def loss(params: Any):
        out = model.apply(params, tokens, config, mode="train")
        logits = model.logits(params, out.hidden, config)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()
        return nats + sum(out.aux.losses.values()), (logits, nats, out.aux)

    (total, (logits, nats, aux)), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    losses = [(total, file["total_loss"]), (nats, file.get("cross_entropy", nats))]
    if "router_loss" in file:
        losses.append((aux.metrics["router_cross_entropy"].sum(), file["router_loss"]))
    relative = lambda a, b: float(np.abs(a - b).max() / (np.abs(b).max() + 1e-12))
    theirs = reference.params(config, grads)
    kept = {int(name.partition("/")[2]): file[name] for name in file if "selected/" in name}
    depth = np.asarray(aux.depth_used)
    return Parity(
        logits_max_abs=float(np.abs(logits - file["logits"]).max()),
        loss_max_abs=float(np.max([abs(float(a) - float(b)) for a, b in losses])),
        gradient_max_rel=float(np.max(jax.tree.leaves(jax.tree.map(relative, ours, theirs)))),
        is_routed_alike=all(
            np.array_equal(
                np.argwhere(depth > r), [(b, t) for b, row in enumerate(index) for t in row]
            )
            for r, index in kept.items()
        ),
    )
