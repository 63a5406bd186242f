"""A model that shares its layers, started from one that does not.

Recursive Transformers (Bae et al. 2024, arXiv 2410.20672): each entry of a bank takes one layer of
the other model or the mean of several, and adapters, where there are some, what comes nearest to
the rest: a truncated singular value decomposition, and at full rank the other model itself.
Functions of parameter trees, for any block and any way of sharing. A target that shares nothing
unrolls a recursive model.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import model
from recursia import params as parameters
from recursia.layers.initial import Init
from recursia.layers.linear import Relaxed
from recursia.params import Spec
from recursia.sharing import lora

Start = Literal["stepwise", "average", "lower", "upper", "random"]
Adapters = Literal["nearest", "initial"]
Groups = list[list[int]]  # for each entry of a bank, layers by their number in the model


def recursive(
    params: dict[str, Any],
    config: model.Model,
    target: model.Model,
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

    def bank(slot: str) -> Any:
        def leaf(spec: Spec, stacked: Spec, *each: Array) -> Array:
            groups = sources(target, slot, start if spec.is_decayed else norms or start, order)
            means = [_mean(*(each[layer] for layer in group)) for group in groups]
            return jnp.stack(means).reshape(stacked.shape)

        return jax.tree.map(leaf, block[slot], specs["core"][slot], *(w[slot] for w in theirs))

    drawn = {name: specs[name] for name in ("core", "depth", "inject")}
    drawn["core"] = {s: tree for s, tree in specs["core"].items() if s not in block}
    found = parameters.init(drawn, key)
    found["core"] |= {slot: bank(slot) for slot in block}
    if isinstance(target.weights, lora.Lora) and adapters == "nearest":
        found["core"] |= _nearest(found["core"], theirs, target)
    for name, count in (("prelude", slice(prelude)), ("coda", slice(-coda, None))):
        ends = theirs[count] if specs[name] else []
        found[name] = jax.tree.map(lambda *w: jnp.stack(w), *ends) if ends else {}
    return found | {name: params[name] for name in ("embed", "final_norm") if name in specs}


def layers(params: dict[str, Any], config: model.Model) -> list[dict[str, Any]]:
    """Returns the weights of every layer by slot, adapters added up, as a token meets them."""
    plan = config.schedule

    def at_step(step: int) -> dict[str, Any]:
        entry = lambda slot: parameters.at(params["core"][slot], int(plan.entry(slot)[step]))
        weights = config.weights.bind({slot: entry(slot) for slot in params["core"]})
        full = lambda w: w.full() if isinstance(w, Relaxed) else w
        return jax.tree.map(full, weights, is_leaf=lambda w: isinstance(w, Relaxed))

    ends = {
        name: [parameters.at(params[name], i) for i in range(count)]
        for name, count in config.ends.items()
    }
    return ends["prelude"] + [at_step(step) for step in plan.steps] + ends["coda"]


def uses(config: model.Model, slot: str) -> Groups:
    """Returns, for each entry of a slot's bank, the layers that it stands for."""
    plan = config.schedule
    found: Groups = [[] for _ in range(plan.size(slot))]
    for layer, step in enumerate(plan.steps, start=config.ends["prelude"]):
        found[plan.entry(slot)[step]].append(layer)
    return found


def sources(config: model.Model, slot: str, start: Start, order: Any) -> Groups:
    """Returns, for each entry of a slot's bank, the layers whose mean it starts as.

    Args:
      config: the model to start.
      slot: one of the block's.
      start: as in `recursive`.
      order: the layers of the core by number from 0, shuffled, for "random".
    """
    used, first = uses(config, slot), config.ends["prelude"]
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


def _nearest(
    core: dict[str, Any], theirs: list[dict[str, Any]], target: model.Model
) -> dict[str, Any]:
    """Returns the adapters of what the entries of the banks in `core` miss of each layer."""
    specs, block, found = model.specs(target)["core"], target.block_specs, {}
    for slot in target.weights.slots:
        missing = {}
        for entry, group in enumerate(uses(target, slot)):
            base = parameters.at(core[slot], entry)
            for layer in group:
                missing[layer] = jax.tree.map(jnp.subtract, theirs[layer][slot], base)
        name = lora.slot_of(slot)
        groups = uses(target, name)
        means = [jax.tree.map(_mean, *(missing[layer] for layer in group)) for group in groups]
        pairs = [lora.nearest(target.weights, block[slot], mean) for mean in means]
        stack = lambda spec, *each: jnp.stack(each).reshape(spec.shape)
        found[name] = jax.tree.map(stack, specs[name], *pairs)
    return found


def _mean(*arrays: Array) -> Array:
    return jnp.stack(arrays).mean(0)


def _check_choice(name: str, got: str, choices: Any) -> None:
    if got not in get_args(choices):
        raise ValueError(f"{name}: got {got!r}, takes {' or '.join(get_args(choices))}")


def _check(config: model.Model, target: model.Model) -> None:
    """Refuses models of which one cannot be made of the other."""
    ours, theirs = _shape(target), _shape(config)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{name}: got {value}, and the model to start from has {theirs.get(name)}; take "
                "the same"
            )


def _shape(config: model.Model) -> dict[str, Any]:
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
