"""Looped models with an exit gate, as the released code of Ouro computes them.

Zhu et al. 2025 (arXiv 2510.25741). Names are those of its `state_dict`; a linear weight is
`[out, in]`. The released loss, `total_loss` with gradients `grad/`, is the cross-entropy of the
loops' logits averaged with the exit probabilities; `paper_stage1_loss`, with gradients of its own,
is the objective of the paper, which training takes here.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from recursia import model
from recursia.architecture import Model
from recursia.blocks.sandwich_norm import SandwichNorm
from recursia.convert.reference import Layer, llama, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.depth.exit_gate import ExitGate
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.params import Params

# Losses of one file, by the prefix of their gradients.
OBJECTIVES = {"grad/": "total_loss", "paper_stage1_grad/": "paper_stage1_loss"}
NORMS = {
    "attention": "input_layernorm",
    "after_attention": "input_layernorm_2",
    "mlp": "post_attention_layernorm",
    "after_mlp": "post_attention_layernorm_2",
}

Named = dict[str, Array]


def case(file: Arrays) -> Layer:
    """Returns what a model and its losses are, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here, or a file without a loss.
    """
    weight = float(file.get("paper_stage1_beta", 0.1))
    ours = config(json.loads(str(file["config"])), weight)
    params = jax.tree.map(jnp.asarray, weights(ours, under(file, "param/")))
    tokens = jnp.asarray(file["tokens"])
    made, gradients = [], []
    for prefix, name in OBJECTIVES.items():
        if name in file:
            found, grads = _graded(params, tokens, ours, name)
            made += found.items()
            theirs = weights(ours, under(file, prefix))
            gradients += zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True)
    if not made:
        raise ConfigError(f"ouro: the file has no {' and no '.join(OBJECTIVES.values())}")
    for at, threshold in enumerate(file.get("exit_thresholds", ())):
        depth = dataclasses.replace(ours.depth, exit_threshold=float(threshold))
        steps, logits = _exits(params, tokens, dataclasses.replace(ours, depth=depth))
        made += [(f"exit_steps/{at}", steps), (f"exit_logits/{at}", logits)]
    kept = {f"{name}/{at}": row for name in ("exit_steps", "exit_logits") if name in file
            for at, row in enumerate(file[name])}  # fmt: skip
    theirs = {**file, **kept}
    pairs = [(name, ours, theirs[name]) for name, ours in made if name in theirs]
    losses = [(a, b) for _, a, b in pairs if jnp.ndim(a) == 0]
    return Layer([(a, b) for _, a, b in pairs if jnp.ndim(a)], losses, gradients)


def config(theirs: Mapping[str, Any], entropy_weight: float) -> Model:
    """Returns our configuration of their model.

    Args:
      theirs: their hyper-parameters.
      entropy_weight: of the paper's objective.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    trees.check_options("ouro", theirs, {"use_sliding_window": False})
    loops, block = theirs["total_ut_steps"], llama.block(theirs, "ouro")
    fields = {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
    return Model(
        num_layers=loops * theirs["num_hidden_layers"],
        vocab_size=theirs["vocab_size"],
        block=SandwichNorm(**fields),
        depth=ExitGate(loops, entropy_weight=entropy_weight),
        sharing="cycle",
        loop_norm="each",
        embed=Table(is_tied=bool(theirs.get("tie_word_embeddings"))),
    )


def weights(config: Model, named: Arrays) -> Params:
    """Returns our parameter tree from arrays by name."""

    def layer(step: int) -> Params:
        prefix = f"model.layers.{step}"
        norms = {ours: named[f"{prefix}.{name}.weight"] for ours, name in NORMS.items()}
        return llama.weights(config.block, named, prefix) | {"norms": norms}

    gate = {
        "weight": named["model.early_exit_gate.weight"][0],
        "bias": named["model.early_exit_gate.bias"].reshape(()),
    }
    core = trees.banks(config, layer)
    return llama.complete(config, named, {"core": core, "depth": {"gate": gate}})


@functools.partial(jax.jit, static_argnames=("config", "name"))
def _graded(params: Params, tokens: Array, config: Model, name: str) -> tuple[Named, Params]:
    """Returns what training computes by its name in the file, and the gradient of one loss."""
    objective: Callable[..., Any] = jax.value_and_grad(_losses, has_aux=True)
    (_, found), grads = objective(params, tokens, config, name)
    return found, grads


def _losses(params: Params, tokens: Array, config: Model, name: str) -> tuple[Array, Named]:
    out = model.apply(params, tokens, config, mode="train")
    aux, targets = out.aux, tokens[:, 1:]
    states, p = trees.narrow(aux.states, Array), trees.narrow(aux.exit_weights, Array)
    loops = jax.vmap(lambda x: model.logits(params, model.read(params, x, config), config))(states)
    averaged = (p[..., None] * loops).sum(0)
    nats = optax.softmax_cross_entropy_with_integer_labels
    by_loop = nats(loops[:, :, :-1], jnp.broadcast_to(targets, (len(loops), *targets.shape)))
    expected, entropy = (p[..., :-1] * by_loop).sum(0), trees.narrow(aux.exits, dict)["entropy"]
    stopping = config.depth.stopping_loss({"entropy": entropy[:, :-1]}, by_loop)
    found = {
        "total_loss": nats(averaged[:, :-1], targets).mean(),
        "paper_stage1_loss": (expected + stopping).mean(),
        "paper_expected_cross_entropy": expected.mean(),
        "paper_exit_entropy": entropy[:, :-1].mean(),
        "cross_entropy": by_loop[-1].mean(),
        "loop_cross_entropy": by_loop.mean((1, 2)),
        "logits": model.logits(params, out.hidden, config),
        "loop_logits": loops,
        "weighted_logits": averaged,
        "exit_probabilities": p,
        "gate_logits": _gates(params, tokens, config),
    }
    return found[name], found


def _gates(params: Params, tokens: Array, config: Model) -> Float[Array, "R B T"]:
    """Returns the gate's results, which stage 2 of training reads."""
    second = dataclasses.replace(config, depth=dataclasses.replace(config.depth, stage=2))
    exits = model.apply(params, tokens, second, mode="train").aux.exits
    return trees.narrow(exits, dict)["scores"]


@functools.partial(jax.jit, static_argnames="config")
def _exits(params: Params, tokens: Array, config: Model) -> tuple[Array, Array]:
    """Returns the loop after which each token stops, from 0, and its logits there."""
    out = model.apply(params, tokens, config, mode="eval")
    return out.aux.depth_used - 1, model.logits(params, out.hidden, config)
