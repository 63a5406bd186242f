"""Models made equal: steps, a width or a depth that give what another model costs, and controls.

Equal is within 1 %. A match changes the fields that `overrides` names, and no others:

    flops   `train.num_steps`
    params  every width of the block that `_SCALED` names and the block has, in proportion, each in
            multiples of the largest power of two in it that is at most a sixteenth of it; then the
            hidden width takes up what is left. Heads keep their numbers.
    cache   `num_layers`, by whole recursions; or, if none is within 1 %, `num_kv_heads` and
            `head_dim`, the latter as little as may be
"""

import dataclasses
import math
import pathlib
import pprint
from collections.abc import Callable
from typing import Any

from recursia import accounting, budget, config, settings
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.blocks.pre_norm import PreNorm
from recursia.changes import overrides, typed
from recursia.errors import ConfigError
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery

TOLERANCE = 0.01  # relative
_ROUND = 0.0025  # relative: what a width that divides by more powers of two may leave
_MOST_LAYERS = 1000
_SCALED = ("embed_dim", "mlp_dim", "expert_dim", "head_dim")
_HIDDEN = ("mlp_dim", "expert_dim")  # the first that the block has and that costs something
_FILE = '''"""{about}"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {values}
    ).lock()
'''
_COSTS = {
    "unique_parameters": lambda model, _: accounting.unique_parameters(model),
    "cache_bytes_per_token": accounting.cache_bytes_per_token,
    "forward_flops_per_token": lambda model, t: accounting.forward_flops(model, t) / t,
}
# What each control has in common with the run, as rows of `budget.compare` name it.
CONTROLS = {
    "equal_params": "unique_parameters",
    "equal_flops": "forward_flops_per_token",
    "equal_training": "training_flops",
}
Cost = Callable[[Model], float]


def matched(runs: dict[str, settings.Run], match: budget.Match) -> dict[str, settings.Run]:
    """Returns the runs, all but the first changed until they cost what the first costs.

    Args:
      runs: by name, at least one.
      match: "flops" of the whole training, unique "params", "cache" bytes per token, or "none".

    Raises:
      ConfigError: if a run cannot be made equal within 1 %; both numbers are in it.
      DataError: if the size of a vocabulary is to be read from data that cannot be read.
    """
    (first, reference), *others = runs.items()
    made = {first: reference}
    for name, run in others:
        try:
            made[name] = run if match == "none" else _matched(run, reference, match)
        except ConfigError as error:
            raise ConfigError(f"--match={match}: {name}: {error}") from None
    return made


def controls(run: settings.Run) -> dict[str, settings.Run]:
    """Returns the unshared models that a claim for a shared one has to beat, by name.

    Each is a plain stack of the run's widths, trained as the run is:

        equal_params    the run's unique parameters, so fewer layers and FLOPs
        equal_flops     its forward FLOPs per token, so more parameters
        equal_training  equal_params for the steps that spend the run's training FLOPs

    Equal parameters and FLOPs at once no such stack has; parallel streams of one model have
    (ParScale, Chen et al. 2025, arXiv 2505.10475), and are not among these.

    Raises:
      ConfigError: if a control cannot be made equal within 1 %; both numbers are in it.
      DataError: if the size of the vocabulary is to be read from data that cannot be read.
    """
    made = {}
    try:
        made["equal_params"] = _control(run, "unique_parameters")
        made["equal_flops"] = _control(run, "forward_flops_per_token")
        made["equal_training"] = _by_steps(made["equal_params"], run)
    except ConfigError as error:
        raise ConfigError(f"--controls: {error}") from None
    return made


def write(folder: pathlib.Path, runs: dict[str, settings.Run], about: str) -> list[str]:
    """Writes each run as a file that `--config=` takes; returns the paths.

    Args:
      folder: made if it is not there.
      runs: by name; whatever a file's name cannot hold becomes an underscore.
      about: what each file says of itself, after its run's name.

    Raises:
      ConfigError: if a file is there already, or the folder cannot be written.
    """
    plain = lambda name: "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    paths = {name: folder / f"{plain(name)}.py" for name in runs}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: is there already; remove it or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, run in runs.items():
            values = pprint.pformat(config.to_dict(run), width=90, sort_dicts=False)
            said = f"{name}: {about}".replace("\\", "/").replace('"', "'")
            values = values.replace("\n", "\n" + 8 * " ")
            paths[name].write_text(_FILE.format(about=said, values=values), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    return list(map(str, paths.values()))


def _matched(run: settings.Run, reference: settings.Run, match: budget.Match) -> settings.Run:
    if match == "flops":
        return _by_steps(run, reference)
    quantity = budget.QUANTITIES[match]
    cost, target = _cost(run, quantity), _cost(reference, quantity)(reference.model)
    if match == "params":
        found = _by_width(run.model, cost, target)
    else:
        found = _by_depth(run.model, cost, target, _MOST_LAYERS)
        if not _equal(cost(found), target):
            heads = _by_heads(run.model, cost, target)
            found = min(found, heads, key=lambda model: _off(cost(model), target))
    return _checked(run, found, quantity, target)


def _control(run: settings.Run, quantity: str) -> settings.Run:
    """Returns the run with a plain stack that costs as much, at most as deep."""
    model = _plain(run.model)
    unit = "none" if run.train.remat == "none" else "block"  # one recursion is the whole stack
    plain = dataclasses.replace(run, model=model, train=dataclasses.replace(run.train, remat=unit))
    cost, target = _cost(plain, quantity), _cost(run, quantity)(run.model)
    model = _by_depth(model, cost, target, run.model.num_layers)
    return _checked(plain, _by_width(model, cost, target), quantity, target)


def _plain(model: Model) -> Model:
    """Returns the model as a stack of unshared pre-norm blocks of rotary attention and SwiGLU.

    They have the widths of the run's block where it has such.
    """
    block, stack = model.block, settings.kind_config("depth", "fixed")
    width, num_heads = block.embed_dim, _width(block, "num_heads") or 1
    head_dim = _width(block, "head_dim") or 2 * max(1, width // num_heads // 2)
    heads = (num_heads, _width(block, "num_kv_heads") or num_heads, head_dim)
    mixer = GroupedQuery(*heads, rope_base=_width(block, "rope_base") or 10_000.0)
    feedforward = SwiGLU(_width(block, "mlp_dim") or 8 * width // 3)
    return Model(
        num_layers=model.num_layers,
        block=PreNorm(width, mixer, feedforward, norm_eps=block.norm_eps),
        depth=stack(num_recursions=1),
        embed=model.embed,
        vocab_size=model.vocab_size,
        dtype=model.dtype,
    )


def _cost(run: settings.Run, quantity: str) -> Cost:
    """Returns what gives a model's cost with the run's vocabulary and sequences."""
    vocab_size = budget.vocab_size(run)
    return lambda model: _COSTS[quantity](model.sized(vocab_size), run.train.seq_len)


def _off(cost: float, target: float) -> float:
    return abs(cost / target - 1)


def _equal(cost: float, target: float) -> bool:
    return _off(cost, target) <= TOLERANCE


def _checked(run: settings.Run, found: Model, quantity: str, target: float) -> settings.Run:
    """Returns the run with the model found, or refuses it."""
    made = dataclasses.replace(run, model=found)
    if not _equal(cost := _cost(run, quantity)(found), target):
        changes = typed(overrides(run, made)) or "no change"
        raise ConfigError(
            f"{quantity} within 1 % of {target:,.0f} wanted; nearest is {cost:,.0f}, by {changes}"
        )
    return made


def _by_steps(run: settings.Run, reference: settings.Run) -> settings.Run:
    """Returns the run with the steps that spend the reference's training FLOPs."""
    target = budget.training_flops(reference)
    steps, error = budget.matched_steps(target, budget.training_flops(run), run.train.num_steps)
    if abs(error) > TOLERANCE:
        raise ConfigError(
            f"training FLOPs within 1 % of {target:.4g} wanted; nearest is "
            f"{target * (1 + error):.4g}, by --config.train.num_steps={steps}"
        )
    return dataclasses.replace(run, train=dataclasses.replace(run.train, num_steps=steps))


def _by_depth(model: Model, cost: Cost, target: float, most: int) -> Model:
    """Returns the model with the layers, at most so many, that come nearest."""
    if _equal(cost(model), target):
        return model
    best = model
    for num_layers in range(1, most + 1):
        try:
            deep = dataclasses.replace(model, num_layers=num_layers)
        except ValueError:  # its recursions do not divide it
            continue
        best = min(best, deep, key=lambda model: _off(cost(model), target))
        if cost(deep) > target:
            break
    return best


def _by_width(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with the widths that come nearest."""
    if _equal(cost(model), target):
        return model
    widths = {name: _width(model.block, name) for name in _SCALED}
    widths = {name: width for name, width in widths.items() if width}
    units = {name: max(_unit(width), 1 + (name == "head_dim")) for name, width in widths.items()}
    below = above = None
    embed_dim = 0
    while above is None and embed_dim <= widths["embed_dim"] * max(2, 2 * target / cost(model)):
        embed_dim += units["embed_dim"]
        scale = embed_dim / widths["embed_dim"]
        steps = {name: max(1, round(scale * widths[name] / unit)) for name, unit in units.items()}
        wide = _with(model, **{name: count * units[name] for name, count in steps.items()})
        if wide is not None:
            below, above = (below, wide) if cost(wide) > target else (wide, None)
    near = sorted(filter(None, (below, above)), key=lambda model: _off(cost(model), target))
    tuned = [_tuned(model, cost, target) for model in near]
    return min(tuned or [model], key=lambda model: not _equal(cost(model), target))


def _unit(width: int) -> int:
    """Returns the largest power of two that divides a width and is at most a sixteenth of it."""
    return math.gcd(width, 1 << max(0, (width // 16).bit_length() - 1))


def _tuned(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with the hidden width, as round as may be, that costs the target."""
    now = cost(model)
    if _equal(now, target):
        return model
    for name in _HIDDEN:
        width = _width(model.block, name)
        wider = _with(model, **{name: 2 * width}) if width else None
        if wider is None or cost(wider) <= now:
            continue
        wanted = width * (1 + (target - now) / (cost(wider) - now))  # costs are linear in it
        rounded = [max(1, round(wanted / 2**k)) * 2**k for k in reversed(range(8))]
        tuned = [m for width in rounded if (m := _with(model, **{name: width})) is not None]
        round_ones = (m for m in tuned if _off(cost(m), target) <= _ROUND)
        return next(round_ones, min([model, *tuned], key=lambda m: _off(cost(m), target)))
    return model


def _by_heads(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with the key and value heads that come nearest, head_dim kept if it may."""
    counts, width = [{}], _width(model.block, "head_dim")
    if not width:
        return model
    if _width(model.block, "num_kv_heads") and (num_heads := _width(model.block, "num_heads")):
        counts = [{"num_kv_heads": k} for k in range(1, num_heads + 1) if num_heads % k == 0]
    found = [model]
    for count in counts:
        if (counted := _with(model, **count)) is not None:
            head_dim = 2 * max(1, round(width * target / cost(counted) / 2))  # costs are linear
            found.append(_with(counted, head_dim=head_dim) or counted)
    fit = [model for model in found if _equal(cost(model), target)]
    if fit:
        return min(fit, key=lambda model: abs(math.log(model.block.mixer.head_dim / width)))
    return min(found, key=lambda model: _off(cost(model), target))


def _with(model: Model, **widths: int) -> Model | None:
    """Returns the model with other widths of its block, or None where its parts refuse them."""

    def changed(part: Any, **inner: Any) -> Any:
        names = [field.name for field in dataclasses.fields(part)]
        return dataclasses.replace(part, **inner, **{n: w for n, w in widths.items() if n in names})

    block = model.block
    try:
        inner = {name: changed(getattr(block, name)) for name in ("mixer", "feedforward")}
        return dataclasses.replace(model, block=changed(block, **inner))
    except ValueError:
        return None


def _width(block: Block, name: str) -> Any:
    """Returns a number of the block or of one of its parts, None if none has it."""
    parts = (block, block.mixer, block.feedforward)
    return next((getattr(part, name) for part in parts if hasattr(part, name)), None)
