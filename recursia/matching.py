"""Runs changed until they cost as much as another run, and unshared controls of a run.

Costs within 1 % count as equal. A match changes only these fields, which `overrides` names:

    flops   `train.num_steps`
    params  `embed_dim`, `mlp_dim`, `expert_dim` and `head_dim` of the block, in proportion, and
            then the hidden width alone; see `scaling.by_width`. The numbers of heads stay.
    cache   `num_layers`, by whole recursions; if none is within 1 %, `num_kv_heads` and `head_dim`,
            which changes as little as possible
"""

import dataclasses
import math
import pathlib
import pprint
from collections.abc import Callable

from recursia import accounting, budget, config, scaling, settings, storage
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.changes import overrides, typed
from recursia.depth.fixed import Fixed
from recursia.errors import ConfigError, StorageError
from recursia.feedforward.swiglu import SwiGLU
from recursia.mixers.grouped_query import GroupedQuery
from recursia.parallel import Parallel

_MAX_LAYERS = 1000
_FILE = '''"""{about}"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {values}
    ).lock()
'''
_COSTS: dict[str, Callable[[Model, int], float]] = {
    "unique_parameters": lambda model, _: accounting.unique_parameters(model),
    "cache_bytes_per_token": accounting.cache_bytes_per_token,
    "forward_flops_per_token": lambda model, t: accounting.forward_flops(model, t) / t,
}
# The quantity that each control shares with the run, by its name in rows of `budget.compare`.
CONTROLS = {
    "equal_params": "unique_parameters",
    "equal_flops": "forward_flops_per_token",
    "equal_training": "training_flops",
    "equal_both": "training_flops",
}


def matched(runs: dict[str, settings.Run], match: budget.Match) -> dict[str, settings.Run]:
    """Returns the runs, each changed until it costs as much as the first.

    Args:
      runs: by name, at least one.
      match: "flops" of all training steps, unique "params", "cache" bytes per token, or "none".

    Raises:
      ConfigError: if no change of a run is within 1 %; the message has both numbers.
      DataError: if the vocabulary's size has to be read from data that is not readable.
    """
    (first, reference), *others = runs.items()
    equal = {first: reference}
    for name, run in others:
        try:
            equal[name] = run if match == "none" else _matched(run, reference, match)
        except ConfigError as error:
            raise ConfigError(f"--match={match}: {name}: {error}") from None
    return equal


def controls(run: settings.Run) -> dict[str, settings.Run]:
    """Returns the unshared baselines of a run whose model shares weights, by name.

    Each is a plain stack of the run's widths with the run's training settings:

        equal_params    the run's unique parameters, so fewer layers and FLOPs
        equal_flops     the run's forward FLOPs per token, so more parameters
        equal_training  equal_params, with the steps that spend the run's training FLOPs
        equal_both      the run's unique parameters in parallel copies (Chen et al. 2025, arXiv
                        2505.10475), as many, and at least two, as come nearest to the run's
                        forward FLOPs: its number of recursions, if all blocks recur. Where these
                        differ by more than 1 %, it takes the steps that spend the run's training
                        FLOPs. One copy, if the run shares nothing.

    No plain stack has equal parameters and equal FLOPs at once.

    Raises:
      ConfigError: if no control is within 1 %; the message has both numbers.
      DataError: if the vocabulary's size has to be read from data that is not readable.
    """
    try:
        small = _control(run, "unique_parameters")
        large = _control(run, "forward_flops_per_token")
        longer = _by_steps(small, run)
        copies = _copies(small, run)
    except ConfigError as error:
        raise ConfigError(f"--controls: {error}") from None
    return dict(zip(CONTROLS, (small, large, longer, copies), strict=True))


def write(folder: pathlib.Path, runs: dict[str, settings.Run], about: str) -> list[str]:
    """Writes each run as a configuration file for `--config=`; returns the paths.

    Args:
      folder: created if it does not exist.
      runs: by name; characters that do not belong in a file name become underscores.
      about: the docstring of each file, after the run's name.

    Raises:
      ConfigError: if a file exists already, or the folder is not writable.
    """
    plain = lambda name: "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    paths = {name: folder / f"{plain(name)}.py" for name in runs}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: exists already; remove it or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, run in runs.items():
            values = pprint.pformat(config.to_dict(run), width=90, sort_dicts=False)
            docstring = f"{name}: {about}".replace("\\", "/").replace('"', "'")
            values = values.replace("\n", "\n" + 8 * " ")
            paths[name].write_text(_FILE.format(about=docstring, values=values), encoding="utf-8")
    except OSError as error:
        kind = StorageError if error.errno in storage.FULL else ConfigError
        raise kind(f"{folder}: cannot be written ({error.strerror})") from None
    return list(map(str, paths.values()))


def _matched(run: settings.Run, reference: settings.Run, match: budget.Match) -> settings.Run:
    if match == "flops":
        return _by_steps(run, reference)
    quantity = budget.QUANTITIES[match]
    cost, target = _cost(run, quantity), _cost(reference, quantity)(reference.model)
    if match == "params":
        model = scaling.by_width(run.model, cost, target)
    else:
        model = scaling.by_depth(run.model, cost, target, _MAX_LAYERS)
        if not scaling.is_equal(cost(model), target):
            heads = scaling.by_heads(run.model, cost, target)
            model = min(model, heads, key=lambda model: scaling.error(cost(model), target))
    return _checked(run, model, quantity, target)


def _control(run: settings.Run, quantity: str) -> settings.Run:
    """Returns the run with a plain stack of the same cost, of no more layers than the run's."""
    model = _plain(run.model)
    unit = "none" if run.train.remat == "none" else "block"  # one recursion is the whole stack
    plain = dataclasses.replace(run, model=model, train=dataclasses.replace(run.train, remat=unit))
    cost, target = _cost(plain, quantity), _cost(run, quantity)(run.model)
    model = scaling.by_depth(model, cost, target, run.model.num_layers)
    return _checked(plain, scaling.by_width(model, cost, target), quantity, target)


def _copies(small: settings.Run, run: settings.Run) -> settings.Run:
    """Returns parallel copies that have a run's parameters and FLOPs.

    A prefix has at most a token for each 32 of a sequence.

    Args:
      small: a plain stack of the run's unique parameters.
      run: the run.
    """
    flops, count = (_cost(small, q) for q in ("forward_flops_per_token", "unique_parameters"))
    target, size = flops(run.model), count(run.model)
    tokens = min(Parallel().prefix_tokens, max(1, run.train.seq_len // 32))
    several = lambda number: dataclasses.replace(
        small.model, parallel=Parallel(num_copies=number, prefix_tokens=tokens)
    )
    below, made = math.floor(target / flops(small.model)), [small.model]
    if not scaling.is_equal(flops(small.model), target):
        made = [several(max(2, number)) for number in (below, below + 1)]
    model = min(made, key=lambda model: scaling.error(flops(model), target))
    model = scaling.by_hidden_width(model, count, size)
    model = scaling.by_width(model, count, size)  # if that is not enough
    copies = _checked(small, model, "unique_parameters", size)
    spent, wanted = budget.training_flops(copies), budget.training_flops(run)
    return copies if scaling.is_equal(spent, wanted) else _by_steps(copies, run)


def _plain(model: Model) -> Model:
    """Returns a stack of unshared pre-norm blocks of rotary attention and SwiGLU.

    Every width that the model's block has is kept.
    """
    block, width_of = model.block, scaling.width_of
    width, num_heads = block.embed_dim, width_of(block, "num_heads") or 1
    head_dim = width_of(block, "head_dim") or 2 * max(1, width // num_heads // 2)
    heads = (num_heads, width_of(block, "num_kv_heads") or num_heads, head_dim)
    mixer = GroupedQuery(*heads, rope_base=width_of(block, "rope_base") or 10_000.0)
    feedforward = SwiGLU(width_of(block, "mlp_dim") or 8 * width // 3)
    return Model(
        num_layers=model.num_layers,
        block=PreNorm(width, mixer, feedforward, norm_eps=block.norm_eps),
        depth=Fixed(num_recursions=1),
        embed=model.embed,
        vocab_size=model.vocab_size,
        dtype=model.dtype,
    )


def _cost(run: settings.Run, quantity: str) -> scaling.Cost:
    """Returns a model's cost at the run's vocabulary and sequence length, as a function."""
    vocab_size = budget.vocab_size(run)
    return lambda model: _COSTS[quantity](model.sized(vocab_size), run.train.seq_len)


def _checked(run: settings.Run, model: Model, quantity: str, target: float) -> settings.Run:
    """Returns the run with another model; raises ConfigError if its cost is not the target's."""
    changed = dataclasses.replace(run, model=model)
    if not scaling.is_equal(cost := _cost(run, quantity)(model), target):
        changes = typed(overrides(run, changed)) or "no change"
        raise ConfigError(
            f"{quantity} within 1 % of {target:,.0f} wanted; nearest is {cost:,.0f}, by {changes}"
        )
    return changed


def _by_steps(run: settings.Run, reference: settings.Run) -> settings.Run:
    """Returns the run with the number of steps that spends the reference's training FLOPs."""
    target = budget.training_flops(reference)
    steps, error = budget.matched_steps(target, budget.training_flops(run), run.train.num_steps)
    if abs(error) > scaling.TOLERANCE:
        raise ConfigError(
            f"training FLOPs within 1 % of {target:.4g} wanted; nearest is "
            f"{target * (1 + error):.4g}, by --config.train.num_steps={steps}"
        )
    return dataclasses.replace(run, train=dataclasses.replace(run.train, num_steps=steps))
