"""Initialises a model that shares layers from one that does not.

Recursive Transformers (Bae et al. 2024, arXiv 2410.20672): each entry of a bank starts as one layer
of the other model or as the mean of several. LoRA adapters, if the model has them, start as the
truncated singular value decomposition of the difference to the layers; at full rank the result is
the other model. Matrices that are products of tensors are split, and those that are combinations of
atoms are cut to their principal components. It works on parameter trees, for any block and any way
of sharing. A target without sharing unrolls a recursive model.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import kinds, model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.convert import atoms, tensors
from recursia.layers.initial import Init
from recursia.params import Params, Spec
from recursia.sharing import key_banks, lora, mpo
from recursia.sharing.atoms import Atoms
from recursia.sharing.schedule import KEYS

Start = Literal["stepwise", "average", "first", "lower", "upper", "random"]
Adapters = Literal["svd", "zero"]
Groups = list[list[int]]  # for each entry of a bank, layers by their number in the model


def recursive(
    params: Params,
    config: Model,
    target: Model,
    start: Start,
    *,
    norms: Start | None = None,
    adapters: Adapters = "svd",
    key: Array,
) -> Params:
    """Returns parameters of `target`, initialised from those of a model of as many layers.

    Embedding, head, final norm and unshared layers are copied. Parameters that the other model does
    not have, such as routers, start as in a new model.

    Args:
      params: parameters of the other model, in float32.
      config: the other model.
      target: the model to initialise.
      start: which layers of the core the entries of a bank start as, in the order of their use:
        "stepwise" spreads them evenly from the first to the last, "lower" takes the first,
        "upper" the last, and "random" draws them. Of the layers that an entry is used for, "first"
        takes the first (FoldGPT, arXiv 2407.00928), "average" the mean.
      norms: the same for norms and biases; None takes `start`.
      adapters: "svd", the products of their rank nearest to the difference between entries and
        layers; or "zero", as in a new model, where their products are zero.
      key: for all random draws.

    Raises:
      ValueError: for an unknown start, or models that differ in more than sharing.
    """
    if isinstance(kind := target.weights, mpo.Mpo):
        dense = recursive(params, config, tensors.tied(target), start, norms=norms, key=key)
        return tensors.with_tensors(dense, target, kind)
    if isinstance(kind, Atoms):
        tied = recursive(params, config, tensors.tied(target), start, norms=norms, key=key)
        first = target.ends["prelude"]
        steps = layers(params, config)[first : first + target.schedule.num_steps]
        return atoms.with_atoms(tied, steps, target, kind, key=key)
    _check(config, target)
    _check_choice("start", start, Start)
    _check_choice("norms", norms or start, Start)
    _check_choice("adapters", adapters, Adapters)
    specs, weights, prelude = model.specs(target), target.weights, target.ends["prelude"]
    dense = layers(params, config)
    num_steps = target.schedule.num_steps
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), num_steps))
    drawn = {name: specs[name] for name in ("core", "depth", "inject")}
    drawn["core"] = {s: tree for s, tree in specs["core"].items() if s not in target.block_specs}
    converted = parameters.init(drawn, key)
    converted["core"] |= _entries_from(dense, target, start, norms or start, order)
    if isinstance(weights, lora.Lora) and adapters == "svd":
        converted["core"] |= _nearest(converted["core"], dense, target, weights)
    for name, ends in (("prelude", dense[:prelude]), ("coda", dense[prelude + num_steps :])):
        converted[name] = jax.tree.map(lambda *w: jnp.stack(w), *ends) if ends else {}
    return converted | {
        name: params[name] for name in ("embed", "final_norm", "resize") if name in specs
    }


def _entries_from(
    dense: list[Params],
    target: Model,
    start: Start,
    norms: Start,
    order: Sequence[int] | np.ndarray,
) -> Params:
    """Returns the core's banks for the slots of the block, from the layers that `sources` names."""
    core, first = model.specs(target)["core"], target.ends["prelude"]
    steps = dense[first : first + target.schedule.num_steps]

    def leaf(bank: str, spec: Spec, stacked: Spec, *by_step: Array) -> Array:
        groups = sources(target, bank, start if spec.is_decayed else norms, order)
        means = [_mean(*(by_step[layer - first] for layer in group)) for group in groups]
        return jnp.stack(means).reshape(stacked.shape)

    def slot_banks(slot: str) -> Params:
        trees = target.block_specs[slot], core[slot], *(layer[slot] for layer in steps)
        split = [key_banks.split(slot, tree, target.key_weights) for tree in trees]
        entries = lambda bank: jax.tree.map(
            functools.partial(leaf, bank), *(t[bank] for t in split)
        )
        return key_banks.join({bank: entries(bank) for bank in split[0]})[slot]

    return {slot: slot_banks(slot) for slot in target.block_specs}


def layers(params: Params, config: Model) -> list[Params]:
    """Returns the weights of every layer by slot, with adapters merged."""

    def at_step(step: int) -> Params:
        kind = config.step_weights.at_step(step)
        weights = kind.bind(_entries(params["core"], config, step))
        has_full = lambda w: hasattr(w, "full")
        return jax.tree.map(lambda w: w.full() if has_full(w) else w, weights, is_leaf=has_full)

    ends = {
        name: [parameters.at(params[name], i) for i in range(count)]
        for name, count in config.ends.items()
    }
    return ends["prelude"] + [at_step(s) for s in config.schedule.steps] + ends["coda"]


def _entries(core: Params, config: Model, step: int) -> Params:
    """Returns the entry of each slot's banks that a step uses."""
    banks: Params = {}
    for slot, tree in core.items():
        banks |= key_banks.split(slot, tree, config.key_weights)
    entry = lambda bank: config.schedule.entry(bank)[step]
    return key_banks.join({bank: parameters.at(tree, entry(bank)) for bank, tree in banks.items()})


def uses(config: Model, bank: str) -> Groups:
    """Returns, for each entry of a bank, the layers that use it."""
    schedule = config.schedule
    groups: Groups = [[] for _ in range(schedule.size(bank))]
    for layer, step in enumerate(schedule.steps, start=config.ends["prelude"]):
        groups[schedule.entry(bank)[step]].append(layer)
    return groups


def sources(
    config: Model, bank: str, start: Start, order: Sequence[int] | np.ndarray | None
) -> Groups:
    """Returns, for each entry of a bank, the layers whose mean it starts as.

    Weights that make keys and values start as the same layers as the rest of their slot, or as the
    "average" of all layers that read those keys (Zuhri et al. 2024, arXiv 2406.09297).

    Args:
      config: the model to initialise.
      bank: a bank of one of the block's slots.
      start: as in `recursive`.
      order: for "random", the layers of the core by number from 0, shuffled.
    """
    if bank.endswith(KEYS) and start != "average":
        groups = sources(config, bank.removesuffix(KEYS), start, order)
        return [groups[entry] for entry in config.schedule.held(bank)]
    used, first = uses(config, bank), config.ends["prelude"]
    size, end = len(used), first + config.schedule.num_steps
    match start:
        case "average":
            return used
        case "first":
            return [layers[:1] for layers in used]
        case "stepwise":  # halves round to the even layer, as in the authors' code
            chosen = [round(layer) for layer in np.linspace(first, end - 1, size)]
        case "lower":
            chosen = range(first, first + size)
        case "upper":
            chosen = range(end - size, end)
        case "random":
            chosen = sorted(first + int(layer) for layer in np.asarray(order)[:size])
    by_use = sorted(range(size), key=lambda entry: used[entry])
    return [[layer] for _, layer in sorted(zip(by_use, chosen, strict=True))]


def _nearest(core: Params, dense: list[Params], target: Model, weights: lora.Lora) -> Params:
    """Returns adapters nearest to the difference between the layers and the entries of banks."""
    steps = list(enumerate(target.schedule.steps, start=target.ends["prelude"]))

    def bank_adapters(slot: str, missing: dict[int, Params], bank: str, specs: Params) -> Params:
        means = [
            jax.tree.map(_mean, *(missing[layer] for layer in group))
            for group in uses(target, bank)
        ]
        pairs = [weights.nearest(target.block_specs[slot], mean) for mean in means]
        kept = [{name: pair[name] for name in specs} for pair in pairs]
        return jax.tree.map(lambda spec, *w: jnp.stack(w).reshape(spec.shape), specs, *kept)

    def slot_adapters(slot: str) -> Params:
        missing = {
            layer: jax.tree.map(
                jnp.subtract, dense[layer][slot], _entries({slot: core[slot]}, target, step)[slot]
            )
            for layer, step in steps
        }
        name = lora.slot_of(slot)
        banks = key_banks.split(name, model.specs(target)["core"][name], target.key_weights)
        return key_banks.join(
            {bank: bank_adapters(slot, missing, bank, specs) for bank, specs in banks.items()}
        )

    return {name: tree for slot in weights.slots for name, tree in slot_adapters(slot).items()}


def _mean(*arrays: Array) -> Array:
    return jnp.stack(arrays).mean(0)


def _check_choice(name: str, got: str, choices: Any) -> None:
    if got not in get_args(choices):
        raise ValueError(f"{name}: got {got!r}, takes {' or '.join(get_args(choices))}")


def _check(config: Model, target: Model) -> None:
    """Refuses a pair of models of which the second cannot be initialised from the first."""
    if config.schedule.shapes or target.schedule.shapes:
        raise ValueError(
            "weights: steps have different widths, and entries start as layers of their own; take "
            "models of one width"
        )
    for copies in (config.parallel.num_copies, target.parallel.num_copies):
        if copies > 1:
            raise ValueError(
                f"parallel.num_copies: got {copies}, and converted models have one copy; take 1, "
                "and then train.init_from, which draws prefixes and the average"
            )
    replaced = target.weights.specs(target.block_specs).keys() & set(target.block.slots)
    if replaced:
        kind = kinds.kind_of(target.weights)
        raise ValueError(
            f"weights: {kind!r} makes matrices of {', '.join(sorted(replaced))} from other "
            "parameters, which cannot be initialised from a model; take 'tied', 'lora', 'mpo' or "
            "'atoms'"
        )
    fixed = _fixed(config)
    for name, value in _fixed(target).items():
        if fixed.get(name) != value:
            raise ValueError(
                f"{name}: got {value}, and the model to start from has {fixed.get(name)}; take "
                "the same"
            )


def _fixed(config: Model) -> dict[str, Any]:
    """Returns the settings, by dotted name, in which two models must agree."""
    names = ("num_layers", "vocab_size", "end_sizes")
    sizes = {name: getattr(config, name) for name in names}
    settings = {**_settings(config.block, "block"), **sizes, **_settings(config.embed, "embed")}
    own = config.end_feedforward
    settings |= {"end_feedforward": "none"} if own is None else _settings(own, "end_feedforward")
    settings |= {} if own is None else config.ends  # whose layers have slots of their own
    return {name: value for name, value in settings.items() if not name.endswith("init_std")}


def _settings(branch: Any, name: str) -> dict[str, Any]:
    """Returns the kinds and settings of a block by dotted name, without initialisation."""
    settings = {name: type(branch).__name__}
    for field, value in vars(branch).items():
        if dataclasses.is_dataclass(value):
            inner = {} if isinstance(value, Init) else _settings(value, f"{name}.{field}")
            settings.update(inner)
        else:
            settings[f"{name}.{field}"] = value
    return settings
