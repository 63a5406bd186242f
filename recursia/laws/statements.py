"""The laws, one function each: it returns what is wrong, "" if nothing is, None if it has no case.

Tokens are drawn at random, and "later" tokens are changed to see what they change: a gradient
cannot see a choice among all tokens of a row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from recursia import accounting, cache, model
from recursia.architecture import Model
from recursia.depth.policy import Aux, Mode
from recursia.laws.copies import tied, untied
from recursia.laws.numbers import error, forward, gradient, tol
from recursia.params import Params
from recursia.sharing.remat import Remat
from recursia.traced_flops import count_flops

Law = Callable[[Model, Params], str | None]
VOCAB, BATCH, LENGTH = 32, 2, 12
_CUT, _PROMPT = 5, 7  # tokens before those that change, and of the first document or prompt
_MODES: tuple[Mode, ...] = ("train", "eval", "causal")
_FIRST_STEP: Any = np.zeros((), np.int32)


def text(seed: int = 0) -> Int[Array, "B T"]:
    """Returns random tokens."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH))
    return jnp.asarray(tokens, jnp.int32)


def parameters(config: Model, weights: Params) -> str | None:
    """The number of parameters in closed form is that of the arrays."""
    counted, there = (
        accounting.unique_parameters(config),
        sum(map(np.size, jax.tree.leaves(weights))),
    )
    return "" if counted == there else f"{counted:,} are counted, and there are {there:,}"


def flops(config: Model, weights: Params) -> str | None:
    """The forward FLOPs in closed form are those of the traced program."""
    passes = config.depth.passes(config.schedule, LENGTH)
    if any(not isinstance(each.times, int) for each in passes):
        return None  # the number of recursions is drawn

    def run(weights: Params, tokens: Array) -> Array:
        out = model.apply(weights, tokens, config, mode="train", step=_FIRST_STEP)
        return model.logits(weights, out.hidden, config)

    counted = BATCH * accounting.forward_flops(config, LENGTH)
    traced = count_flops(jax.make_jaxpr(run)(weights, text()))
    return "" if counted == traced else f"{counted:,} are counted, and the program has {traced:,}"


def gradients(config: Model, weights: Params) -> str | None:
    """Every weight has a finite gradient, which is not zero, outside the depth policy."""
    nats, grads = _gradient(weights, config)
    if not np.isfinite(nats):
        return f"the loss is {nats}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not np.isfinite(leaf).all():
            return f"the gradient of {name} is not finite"
        if not name.startswith("depth.") and not np.any(leaf):
            return f"{name} has no gradient: nothing uses it"
    return ""


def rematerialisation(config: Model, weights: Params) -> str | None:
    """Gradients do not depend on what the backward pass computes again."""
    kept = _gradient(weights, config)
    apart = [
        _apart(_gradient(weights, config, Remat(unit)), kept) for unit in ("block", "recursion")
    ]
    return _same(max(apart), 1024, "gradients")


def causality(config: Model, weights: Params) -> str | None:
    """No logit depends on later tokens, in the modes that the depth policy calls causal."""
    if not config.is_causal("causal"):
        return "is_causal('causal') is False, and decoding knows no later tokens"
    tokens = text()
    other = tokens.at[:, _CUT:].set((tokens[:, _CUT:] + 1) % VOCAB)
    for mode in filter(config.is_causal, _MODES):
        ours, aux = _forward(weights, tokens, config, mode)
        theirs = _forward(weights, other, config, mode)[0]
        depth, most = np.asarray(aux.depth_used), config.schedule.num_recursions
        if depth.shape != tokens.shape or not 0 <= depth.min() <= depth.max() <= most:
            return f"depth_used is {depth.tolist()}, of at most {most} recursions"
        if wrong := _same(error(theirs[:, :_CUT], ours[:, :_CUT]), 64, f"{mode}: earlier logits"):
            return wrong
    return ""


def documents(config: Model, weights: Params) -> str | None:
    """Documents that are packed into a row have the logits that each has alone."""
    tokens, rest = text(), LENGTH - _PROMPT
    for mode in filter(config.is_causal, _MODES):
        packed = _forward(weights, tokens, config, mode, _rows(_PROMPT, rest))[0]
        first = _forward(weights, tokens, config, mode, _rows(_PROMPT))[0]
        second = _forward(weights, jnp.roll(tokens, -_PROMPT, 1), config, mode, _rows(rest))[0]
        alone = jnp.concatenate([first[:, :_PROMPT], second[:, :rest]], axis=1)
        if wrong := _same(error(packed, alone), 256, f"{mode}: logits of packed documents"):
            return wrong
    return ""


def padding(config: Model, weights: Params) -> str | None:
    """Tokens beside padding have the logits, depths, losses and metrics that they have alone."""
    tokens = text()
    for mode in ("train", "causal"):
        alone, short = forward(weights, tokens[:, :_PROMPT], config, mode, step=_FIRST_STEP)
        beside, long = _forward(weights, tokens, config, mode, _rows(_PROMPT))
        ours = beside[:, :_PROMPT], long.depth_used[:, :_PROMPT], long.losses, long.metrics
        apart = error(ours, (alone, short.depth_used, short.losses, short.metrics))
        if wrong := _same(apart, 4096, f"{mode}: results beside padding"):
            return wrong
    return ""


def sharing(config: Model, weights: Params) -> str | None:
    """Shared weights are equal copies, and their gradient is the sum over the copies."""
    try:
        free_config, free = untied(config, weights)
    except ValueError:
        return None  # of a policy that has no weights of its own for every recursion

    def nats(weights: Params, config: Model) -> Array:
        logits = forward(weights, text(), config)[0]
        labels = text()[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels).mean()

    run = jax.jit(jax.value_and_grad(nats), static_argnums=1)
    (ours, grads), (theirs, copies) = run(weights, config), run(free, free_config)
    if wrong := _same(abs(float(ours - theirs)) / abs(float(theirs)), 64, "losses of copies"):
        return wrong
    return _same(
        _apart(grads, tied(config, free_config, copies)), 1024, "summed gradients of copies"
    )


def decoding(config: Model, weights: Params) -> str | None:
    """Decoding with a KV cache gives the logits of whole forward passes in mode "causal"."""
    if not config.is_incremental:
        return None
    tokens, found, held = text(), [], cache.empty(config, BATCH, LENGTH)
    held = cache.resized(held, {(n, o): LENGTH for n, each in held.pasts.items() for o in each})
    apart, places = (
        cache.unstack(weights, config),
        jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape),
    )

    @jax.jit
    def extended(tokens: Array, held: Any, places: Array) -> tuple[Array, Any]:
        live = jnp.ones_like(tokens)
        hidden, held = model.extend(apart, tokens, config, held, positions=places, segment_ids=live)
        return model.logits(apart, hidden, config), held

    for here in (slice(0, _PROMPT), *(slice(t, t + 1) for t in range(_PROMPT, LENGTH))):
        logits, held = extended(tokens[:, here], held, places[:, here])
        found.append(logits)
    whole = _forward(weights, tokens, config, "causal")[0]
    return _same(error(jnp.concatenate(found, axis=1), whole), 256, "logits of decoding")


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        parameters,
        flops,
        gradients,
        rematerialisation,
        causality,
        documents,
        padding,
        sharing,
        decoding,
    )
}


def _forward(
    weights: Params, tokens: Array, config: Model, mode: Mode, rows: tuple[Array, ...] | None = None
) -> tuple[Array, Aux]:
    """Returns logits and aux; with arguments of the same shapes, so that a mode compiles once."""
    where = _rows(LENGTH) if rows is None else rows
    return forward(weights, tokens, config, mode, *where, step=_FIRST_STEP)


def _gradient(weights: Params, config: Model, remat: Remat | None = None) -> tuple[Any, Any]:
    how = {} if remat is None else {"remat": remat}
    return gradient(weights, text(), config, step=_FIRST_STEP, **how)


def _rows(*lengths: int) -> tuple[Array, ...]:
    """Returns positions and segments of rows of documents of these lengths, and padding."""
    places, segments = np.zeros((2, BATCH, LENGTH), np.int32)
    for i, length in enumerate(lengths):
        here = slice(sum(lengths[:i]), sum(lengths[: i + 1]))
        places[:, here], segments[:, here] = np.arange(length), i + 1
    return jnp.asarray(places), jnp.asarray(segments)


def _apart(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of two gradients, over the entries of the leaf or of most.

    Some gradients are zero but for rounding, as of a bias that softmax ignores.
    """
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    scale = lambda leaf: max(float(np.abs(leaf).max()), 0.01 * largest)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()) / scale(b), ours, theirs)
    return max(jax.tree.leaves(apart))


def _same(apart: float, terms: int, what: str) -> str:
    """Returns "" if a relative difference is rounding of a sum of so many terms."""
    return (
        "" if apart <= tol(jnp.float32, terms) else f"{what} differ by {apart:.1e} of the largest"
    )
