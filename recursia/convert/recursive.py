"""A model that shares its layers, started from one that does not.

Recursive Transformers (Bae et al. 2024, arXiv 2410.20672): each entry of a bank takes one layer of
the other model or the mean of several, and adapters, where there are some, what comes nearest to
the rest: a truncated singular value decomposition, and at full rank the other model itself.
Functions of parameter trees, for any block and any way of sharing. A target that shares nothing
unrolls a recursive model.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import model
from recursia import params as parameters
from recursia.architecture import Model
from recursia.layers.initial import Init
from recursia.params import Spec
from recursia.sharing import key_banks, lora
from recursia.sharing.schedule import KEYS

Start = Literal["stepwise", "average", "lower", "upper", "random"]
Adapters = Literal["nearest", "initial"]
Groups = list[list[int]]  # for each entry of a bank, layers by their number in the model


def recursive(
    params: dict[str, Any],
    config: Model,
    target: Model,
    start: Start,
    *,
    norms: Start | None = None,
    adapters: Adapters = "nearest",
    key: Array,
) -> dict[str, Any]:
    """Returns parameters of `target` made of those of a model of as many layers.

    Embedding, head and final norm are copied, layers that are not shared too. What the other model
    does not have, such as routers, starts as in a new model.

    Args:
      params: of the other model, float32.
      config: the other model.
      target: the model to start.
      start: the layers of the core that the entries of a bank take, in the order of their use:
        "stepwise" spreads them evenly from the first to the last, "lower" takes the first,
        "upper" the last, "random" draws them. "average" takes the mean of all that an entry is
        used for.
      norms: the same for what is no matrix (norms and biases); None takes `start`.
      adapters: "nearest" to what the entries miss, or "initial", as in a new model.
      key: of what is drawn.

    Raises:
      ValueError: for an unknown start, or models that differ in more than what is shared.
    """
    _check(config, target)
    _check_choice("start", start, Start)
    _check_choice("norms", norms or start, Start)
    _check_choice("adapters", adapters, Adapters)
    specs, plan, block = model.specs(target), target.schedule, target.block_specs
    prelude, coda = target.ends.values()
    theirs = layers(params, config)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), plan.num_steps))

    def leaf(bank: str, spec: Spec, stacked: Spec, *each: Array) -> Array:
        groups = sources(target, bank, start if spec.is_decayed else norms or start, order)
        means = [_mean(*(each[layer] for layer in group)) for group in groups]
        return jnp.stack(means).reshape(stacked.shape)

    def of_slot(slot: str) -> Any:
        trees = block[slot], specs["core"][slot], *(w[slot] for w in theirs)
        split = [key_banks.split(slot, tree, target.key_weights) for tree in trees]
        made = lambda bank: jax.tree.map(functools.partial(leaf, bank), *(t[bank] for t in split))
        return key_banks.join({bank: made(bank) for bank in split[0]})[slot]

    drawn = {name: specs[name] for name in ("core", "depth", "inject")}
    drawn["core"] = {s: tree for s, tree in specs["core"].items() if s not in block}
    found = parameters.init(drawn, key)
    found["core"] |= {slot: of_slot(slot) for slot in block}
    if isinstance(target.weights, lora.Lora) and adapters == "nearest":
        found["core"] |= _nearest(found["core"], theirs, target)
    for name, count in (("prelude", slice(prelude)), ("coda", slice(-coda, None))):
        ends = theirs[count] if specs[name] else []
        found[name] = jax.tree.map(lambda *w: jnp.stack(w), *ends) if ends else {}
    return found | {name: params[name] for name in ("embed", "final_norm") if name in specs}


def layers(params: dict[str, Any], config: Model) -> list[dict[str, Any]]:
    """Returns the weights of every layer by slot, adapters added up, as a token meets them."""

    def at_step(step: int) -> dict[str, Any]:
        weights = config.weights.bind(_entries(params["core"], config, step))
        is_made = lambda w: hasattr(w, "full")
        return jax.tree.map(lambda w: w.full() if is_made(w) else w, weights, is_leaf=is_made)

    ends = {
        name: [parameters.at(params[name], i) for i in range(count)]
        for name, count in config.ends.items()
    }
    return ends["prelude"] + [at_step(s) for s in config.schedule.steps] + ends["coda"]


def _entries(core: dict[str, Any], config: Model, step: int) -> dict[str, Any]:
    """Returns the entry of each slot's banks that a step uses."""
    banks: dict[str, Any] = {}
    for slot, tree in core.items():
        banks |= key_banks.split(slot, tree, config.key_weights)
    entry = lambda bank: int(config.schedule.entry(bank)[step])
    return key_banks.join({bank: parameters.at(tree, entry(bank)) for bank, tree in banks.items()})


def uses(config: Model, bank: str) -> Groups:
    """Returns, for each entry of a bank, the layers that it stands for."""
    plan = config.schedule
    found: Groups = [[] for _ in range(plan.size(bank))]
    for layer, step in enumerate(plan.steps, start=config.ends["prelude"]):
        found[plan.entry(bank)[step]].append(layer)
    return found


def sources(config: Model, bank: str, start: Start, order: Any) -> Groups:
    """Returns, for each entry of a bank, the layers whose mean it starts as.

    What makes keys and values starts with the rest of its slot, or as the "average" of all whose
    keys are read with it (Zuhri et al. 2024, arXiv 2406.09297).

    Args:
      config: the model to start.
      bank: of one of the block's slots.
      start: as in `recursive`.
      order: the layers of the core by number from 0, shuffled, for "random".
    """
    if bank.endswith(KEYS) and start != "average":
        groups = sources(config, bank.removesuffix(KEYS), start, order)
        return [groups[entry] for entry in config.schedule.held(bank)]
    used, first = uses(config, bank), config.ends["prelude"]
    size, end = len(used), first + config.schedule.num_steps
    match start:
        case "average":
            return used
        case "stepwise":  # halves are rounded to the even layer, as the authors' code does
            chosen = [round(layer) for layer in np.linspace(first, end - 1, size)]
        case "lower":
            chosen = range(first, first + size)
        case "upper":
            chosen = range(end - size, end)
        case "random":
            chosen = sorted(first + int(layer) for layer in order[:size])
    by_use = sorted(range(size), key=lambda entry: used[entry])
    return [[layer] for _, layer in sorted(zip(by_use, chosen, strict=True))]


def _nearest(core: dict[str, Any], theirs: list[dict[str, Any]], target: Model) -> dict[str, Any]:
    """Returns the adapters of what the entries of the banks in `core` miss of each layer."""
    found, walk = {}, list(enumerate(target.schedule.steps, start=target.ends["prelude"]))

    def adapters(slot: str, missing: dict[int, Any], bank: str, tree: Any) -> Any:
        means = [
            jax.tree.map(_mean, *(missing[layer] for layer in group))
            for group in uses(target, bank)
        ]
        pairs = [target.weights.nearest(target.block_specs[slot], mean) for mean in means]
        kept = [{name: pair[name] for name in tree} for pair in pairs]
        return jax.tree.map(lambda spec, *w: jnp.stack(w).reshape(spec.shape), tree, *kept)

    for slot in target.weights.slots:
        bases = [_entries({slot: core[slot]}, target, step)[slot] for _, step in walk]
        missing = {
            layer: jax.tree.map(jnp.subtract, theirs[layer][slot], base)
            for (layer, _), base in zip(walk, bases, strict=True)
        }
        name = lora.slot_of(slot)
        banks = key_banks.split(name, model.specs(target)["core"][name], target.key_weights)
        made = {bank: adapters(slot, missing, bank, tree) for bank, tree in banks.items()}
        found |= key_banks.join(made)
    return found


def _mean(*arrays: Array) -> Array:
    return jnp.stack(arrays).mean(0)


def _check_choice(name: str, got: str, choices: Any) -> None:
    if got not in get_args(choices):
        raise ValueError(f"{name}: got {got!r}, takes {' or '.join(get_args(choices))}")


def _check(config: Model, target: Model) -> None:
    """Refuses models of which one cannot be made of the other."""
    if made := [s for s in target.weights.specs(target.block_specs) if s in target.block.slots]:
        kind = type(target.weights).__module__.rpartition(".")[2]
        raise ValueError(
            f"weights: {kind!r} makes matrices of {', '.join(made)} of other parameters, and how "
            "they start from a model is not known; take 'tied' or 'lora'"
        )
    ours, theirs = _shape(target), _shape(config)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{name}: got {value}, and the model to start from has {theirs.get(name)}; take "
                "the same"
            )


def _shape(config: Model) -> dict[str, Any]:
    """Returns what two models must have alike: all of it but initial scales."""
    embed = {f"embed.{name}": v for name, v in dataclasses.asdict(config.embed).items()}
    sizes = {"num_layers": config.num_layers, "vocab_size": config.vocab_size}
    found = {**_parts(config.block, "block"), **sizes, **embed}
    return {name: value for name, value in found.items() if not name.endswith("init_std")}


def _parts(part: Any, name: str) -> dict[str, Any]:
    """Returns the kinds and settings of a block by dotted name, but for initial scales."""
    found = {name: type(part).__name__}
    for field, value in vars(part).items():
        if dataclasses.is_dataclass(value):
            inner = {} if isinstance(value, Init) else _parts(value, f"{name}.{field}")
            found.update(inner)
        else:
            found[f"{name}.{field}"] = value
    return found
