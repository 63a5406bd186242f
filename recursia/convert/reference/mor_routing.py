"""Depth policies of Mixture-of-Recursions, as ours: raymin0223/mixture_of_recursions.

Read from the section `mor` of its configuration.
"""

from collections.abc import Mapping
from typing import Any

from recursia.depth import expert_choice, token_choice
from recursia.errors import ConfigError

KINDS = {"linear": "linear", "mlp": "mlp", "wide_mlp": "mlp"}  # the last two are the same code
# Weight of the router's loss in the total loss of a file, whatever the weight in training was. The
# total has no z-loss.
WEIGHT_IN_TOTAL = 0.001


def policy(
    theirs: Mapping[str, Any], recursions: int
) -> expert_choice.ExpertChoice | token_choice.TokenChoice:
    """Returns the depth policy.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    mor = theirs["mor"]
    if mor["type"] not in ("expert", "token"):
        raise ConfigError(f"mor.type: got {mor['type']!r}, takes 'expert' or 'token'")
    if (theirs.get("kv_sharing") or {}).get("update_cache"):
        raise ConfigError("kv_sharing.update_cache: got True, and it is not read here")
    if mor.get("rand_router"):
        raise ConfigError("mor.rand_router: got True, and it is not read here")
    if mor["router_type"] not in KINDS:
        raise ConfigError(f"mor.router_type: got {mor['router_type']!r}, takes {', '.join(KINDS)}")
    own = mor[mor["type"]]
    for name in ("cap_warmup_step", "bal_warmup_step"):
        if own.get(name):
            raise ConfigError(f"mor.{mor['type']}.{name}: got {own[name]}, takes 0 or none")
    shared = {
        "num_recursions": recursions,
        "gating": "weighted" if own.get("gating", "weighted") == "weighted" else "additive",
        "router": KINDS[mor["router_type"]],
        "temperature": mor.get("temp") or 1.0,
    }
    return _expert_choice(mor, shared) if mor["type"] == "expert" else _token_choice(own, shared)


def _expert_choice(mor: Mapping[str, Any], shared: Mapping[str, Any]) -> expert_choice.ExpertChoice:
    own = mor["expert"]
    if own.get("sampling") not in ("aux_loss", "aux_router", None):
        raise ConfigError(
            f"mor.expert.sampling: got {own['sampling']!r}, takes 'aux_loss' or 'aux_router'"
        )
    if own.get("router_func") not in ("sigmoid", "tanh", None):
        raise ConfigError(
            f"mor.expert.router_func: got {own['router_func']!r}, takes 'sigmoid' or 'tanh'"
        )
    return expert_choice.ExpertChoice(
        capacity=tuple(float(c) for c in str(mor["capacity"]).split(",")),
        alpha=own.get("alpha") or 1.0,
        score=own.get("router_func") or "none",
        sampling=own.get("sampling") or "aux_loss",
        aux_loss_weight=WEIGHT_IN_TOTAL if own.get("sampling") else 0.0,
        **shared,
    )


def _token_choice(own: Mapping[str, Any], shared: Mapping[str, Any]) -> token_choice.TokenChoice:
    if own.get("balancing") not in ("loss", "loss_free", None):
        raise ConfigError(
            f"mor.token.balancing: got {own['balancing']!r}, takes 'loss' or 'loss_free'"
        )
    return token_choice.TokenChoice(
        score="sigmoid" if own.get("router_func") == "sigmoid" else "softmax",
        alpha=own.get("alpha"),
        balancing=own.get("balancing") or "none",
        balance_weight=WEIGHT_IN_TOTAL,
        **shared,
    )
