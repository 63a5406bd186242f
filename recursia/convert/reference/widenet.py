"""Steps that share attention and experts, each with its own norms: XueFuzhao/WideNet_Code.

Xue et al. 2021 (arXiv 2107.11817). The released model reads images. A file is held in the states
between its steps: `stack/input` and `stack/output`, and how the loss depends on them. What differs
from the language model here is done in this file: a token sees all others, an expert ends in a
second GELU and has biases, and its capacity counts the tokens of the whole batch and is one short.
"""

import functools
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recursia.convert.reference import Layer, trees
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.layers import balance, experts, norm, router
from recursia.layers.attention import Context, attend
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

EPS = 1e-6
REQUIRED = {"share_att": True, "share_ffn": True, "aux_loss": True, "aux_loss_beta": 0.0}
Named = dict[str, Array]


def case(file: Arrays) -> Layer:
    """Returns what the steps compute, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    theirs = json.loads(str(file["config"]))
    sizes = _sizes(theirs)
    parts = ("param/norm/", "param/attention/", "param/experts/", "param/router/")
    named = {
        name.removeprefix("param/"): jnp.asarray(value)
        for name, value in file.items()
        if name.startswith(parts)
    }
    x, towards = jnp.asarray(file["stack/input"]), jnp.asarray(file["stack/grad_output"])
    (_, made), (by_name, to_input) = _graded(named, x, towards, sizes)
    pairs = [(ours, file[name]) for name, ours in made.items() if name in file]
    gradients = [(to_input, file["stack/grad_input"])]
    # A bias of keys has no gradient but rounding: it is compared beside that of queries.
    small, large = (f"attention/{name}/bias" for name in ("key", "query"))
    by_name[large] = jnp.stack([by_name[large], by_name.pop(small)])
    theirs = {name: file[f"grad/{name}"] for name in by_name}
    theirs[large] = np.stack([theirs[large], file[f"grad/{small}"]])
    gradients += [(ours, theirs[name]) for name, ours in by_name.items()]
    outputs = [pair for pair in pairs if pair[0].ndim]
    return Layer(outputs, [pair for pair in pairs if not pair[0].ndim], gradients)


class _Sizes(NamedTuple):
    """Hyper-parameters of the steps.

    Attributes:
      steps: how many there are.
      num_heads: attention heads.
      num_experts: experts in all.
      top_k: experts of a token.
      capacity: an expert's most tokens over its mean number.
      weight: of the load balancing loss.
    """

    steps: int
    num_heads: int
    num_experts: int
    top_k: int
    capacity: float
    weight: float


def _sizes(theirs: Mapping[str, Any]) -> _Sizes:
    trees.check_options("widenet", theirs, REQUIRED)
    layers = theirs["model"]["transformer"]
    for option in ("group_deepth", "switch_deepth"):
        if theirs.get(option, layers["num_layers"]) < layers["num_layers"]:
            raise ConfigError(
                f"widenet.{option}: got {theirs[option]}, and only steps that all share are read "
                f"here; they are {layers['num_layers']}"
            )
    return _Sizes(
        steps=layers["num_layers"],
        num_heads=layers["num_heads"],
        num_experts=theirs["num_experts"],
        top_k=theirs["top_k"],
        capacity=theirs["capacity_factor"],
        weight=theirs["aux_loss_alpha"],
    )


@functools.partial(jax.jit, static_argnames="sizes")
@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def _graded(
    named: Named, x: Float[Array, "B T D"], towards: Float[Array, "B T D"], sizes: _Sizes
) -> tuple[Array, Named]:
    """Returns a loss with the file's gradients, and what the steps compute by its name."""
    made: Named = {}
    for step in range(sizes.steps):
        x = x + _attention(named, _norm(named, x, f"{step}/attention"), sizes)
        made[f"step/{step}/after_attention"] = x
        h = _norm(named, x, f"{step}/moe")
        y, own = _experts(named, h, sizes)
        x = x + y
        made |= {f"{name}/{step}": value for name, value in own.items()}
        made |= {f"step/{step}/moe_input": h, f"step/{step}/moe_output": y}
        made[f"step/{step}/output"] = x
    made["stack/output"] = x
    made["aux_loss"] = sum(
        (made[f"aux_loss/{step}"] for step in range(sizes.steps)), jnp.float32(0)
    )
    return (x * towards).sum() + made["aux_loss"], made


def _norm(named: Named, x: Array, name: str) -> Array:
    weights = {"scale": named[f"norm/{name}/gamma"], "bias": named[f"norm/{name}/beta"]}
    return norm.normalise(x, weights, EPS)


def _attention(named: Named, h: Array, sizes: _Sizes) -> Array:
    """Returns attention of all tokens to all: their positions are equal."""
    names = {"query": "query", "key": "key", "value": "value", "output": "out"}
    weights: Params = {ours: named[f"attention/{name}/kernel"] for name, ours in names.items()}
    weights |= {f"{ours}_bias": named[f"attention/{name}/bias"] for name, ours in names.items()}
    heads, width = sizes.num_heads, weights["query"].shape[-1]
    mixer = GroupedQuery(heads, heads, width, rope_base=None, has_bias=True, has_value_bias=True)
    params, places = {"attention": weights}, jnp.zeros(h.shape[:2], jnp.int32)
    context, there = Context(places), Context(places)
    queries = mixer.queries(params, h, context)
    made, _ = mixer.keys_values(params, h, h, there)
    mixed = attend(queries.heads, made, context, there)
    return mixer.outputs(params, mixed, h, queries, context)[0]


def _experts(named: Named, h: Array, sizes: _Sizes) -> tuple[Array, Named]:
    """Returns the outputs of the experts, and how tokens are routed."""
    flat = h.reshape(1, -1, h.shape[-1])
    context = Context(jnp.zeros(flat.shape[:2], jnp.int32))
    choice, usage = router.route(
        named["router/kernel"], flat, sizes.top_k, context, score="softmax"
    )
    # Their first place is 1, and the last below the capacity.
    places = int(flat.shape[1] * sizes.capacity * sizes.top_k // sizes.num_experts) - 1
    share = Fraction(places * sizes.num_experts, sizes.top_k * flat.shape[1])
    kept = experts.limit(choice, sizes.num_experts, share, None)
    bank = lambda layer, part: jnp.stack(
        [named[f"experts/{e}/{layer}/{part}"] for e in range(sizes.num_experts)]
    )
    inner = jax.nn.gelu(
        experts.project(flat, choice.index, bank(0, "kernel")) + bank(0, "bias")[choice.index]
    )
    outer = experts.project(inner, choice.index[..., None], bank(1, "kernel"))[..., 0, :]
    y = experts.mix(jax.nn.gelu(outer + bank(1, "bias")[choice.index]), kept.weight)
    by_expert = lambda values: jnp.zeros((*flat.shape[:2], sizes.num_experts), values.dtype).at[
        0, jnp.arange(flat.shape[1])[:, None], choice.index[0]
    ].set(values[0])  # fmt: skip
    shaped = lambda array: array.reshape(*h.shape[:2], -1)
    return shaped(y), {
        "aux_loss": sizes.weight * balance.switch_loss(usage),
        "selected": shaped(jnp.sort(choice.index)),
        "kept": shaped(by_expert((kept.weight > 0).astype(jnp.int32))),
        "gates": shaped(by_expert(kept.weight)),
    }
