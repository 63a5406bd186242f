"""A model of fixed depth as one that shares nothing: every step a layer with weights of its own."""

from collections.abc import Iterator
from typing import Any

from recursia import kv
from recursia.architecture import Model
from recursia.convert.names import Path, leaves
from recursia.depth.fixed import Fixed
from recursia.errors import ConfigError
from recursia.injection import Injection
from recursia.params import at
from recursia.sharing import key_banks


def unrolled(config: Model) -> Model:
    """Returns the model that shares nothing and computes the same.

    Raises:
      ConfigError: if there is none: where depth is not fixed, or something but blocks stands
        between them.
    """
    plan = config.schedule
    reasons = {
        "depth": type(config.depth) is not Fixed,
        "inject": config.inject != Injection(),
        "loop_norm": config.loop_norm != "none",
        "parallel": config.parallel.num_copies > 1,
        "end_sizes": bool(config.end_sizes),
        "end_feedforward": config.end_feedforward is not None,
        "kv.kv_sharing": not plan.makes_all_keys,
        "weights": bool(plan.shapes),
    }
    if wrong := [name for name, is_wrong in reasons.items() if is_wrong]:
        raise ConfigError(
            f"config.{wrong[0]}: a model with this has no unrolled form; take --format=recursive"
        )
    ends = config.ends
    windows = plan.seen[plan.steps].tolist()
    row = (*[0] * ends["prelude"], *windows, *[0] * ends["coda"])
    return Model(
        num_layers=config.num_layers,
        block=config.block,
        depth=Fixed(1),
        kv=kv.Plan(window=(row,) if any(row) else 0),
        embed=config.embed,
        parameterisation=config.parameterisation,
        vocab_size=config.vocab_size,
        dtype=config.dtype,
    )


def layers(params: dict[str, Any], config: Model) -> Iterator[dict[Path, Any]]:
    """Yields the weights of each layer by path in a block, adapters added up, one at a time."""
    for end in ("prelude", "core", "coda"):
        if end == "core":
            for step in config.schedule.steps:
                yield dict(leaves(_step(params["core"], config, int(step))))
        else:
            for number in range(config.ends[end]):
                yield dict(leaves(at(params[end], number)))


def _step(core: dict[str, Any], config: Model, step: int) -> dict[str, Any]:
    banks: dict[str, Any] = {}
    for slot, tree in core.items():
        banks |= key_banks.split(slot, tree, config.key_weights)
    entry = lambda bank: config.schedule.entry(bank)[step]
    own = key_banks.join({bank: at(tree, entry(bank)) for bank, tree in banks.items()})
    bound = config.step_weights.at_step(step).bind(own)

    def full(weight: Any) -> Any:
        if isinstance(weight, dict):
            return {name: full(inner) for name, inner in weight.items()}
        return weight.full() if hasattr(weight, "full") else weight

    return {slot: full(tree) for slot, tree in bound.items()}
