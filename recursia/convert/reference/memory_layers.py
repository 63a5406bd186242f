"""Llamas some of whose feed-forwards are memory layers: facebookresearch/memory.

Berges et al. 2024 (arXiv 2412.09764). All memory layers of a file share one table of values, or of
experts of one hidden unit (PEER). A model here has one kind of feed-forward in all its steps: this
file applies two blocks in turn.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from recursia.blocks.pre_norm import PreNorm
from recursia.convert.reference import Layer, trees, under
from recursia.convert.reference.trees import Arrays
from recursia.errors import ConfigError
from recursia.feedforward.product_keys import ProductKeys
from recursia.feedforward.rank_one_experts import RankOneExperts
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers import norm, product_keys
from recursia.layers.attention import Context
from recursia.mixers.grouped_query import GroupedQuery
from recursia.params import Params

MEMORY = "feed_forward"
# Options of the configuration's two parts for which only this value is read.
REQUIRED = {"weight_tying": False}
REQUIRED_OF_MEMORY = {"is_enabled": True, "mem_gated": False, "mem_share_values": True}
Named = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class _Model:
    """Blocks of a file's model.

    Attributes:
      plain: with a SwiGLU.
      memory: with a memory layer.
      layers: for each layer, whether it is one of the latter.
    """

    plain: PreNorm
    memory: PreNorm
    layers: tuple[bool, ...]


def case(file: Arrays) -> Layer:
    """Returns what the model computes, beside the file's arrays.

    Raises:
      ConfigError: for an option that has no counterpart here.
    """
    config = _model(json.loads(str(file["config"])), file["param/layers.0.attention_norm.weight"])
    tokens = np.asarray(file["tokens"])
    params = jax.tree.map(jnp.asarray, _params(config, under(file, "param/")))
    (nats, made), ours = _graded(params, tokens, config)
    for at in np.flatnonzero(config.layers):
        name = f"slots/{at}"
        if name in file and not np.array_equal(made.pop(name), file[name]):
            raise ConfigError(f"{name}: tokens read other values than in the file")
    theirs = _params(config, under(file, "grad/"))
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return Layer(
        outputs=[(value, file[name]) for name, value in made.items() if name in file],
        losses=[(nats, file[name]) for name in ("cross_entropy", "total_loss") if name in file],
        gradients=[(mine, np.asarray(other)) for mine, other in pairs],
    )


def _model(theirs: Mapping[str, Any], scale: np.ndarray) -> _Model:
    sizes = theirs["productkey_args"]
    trees.check_options("memory_layers", theirs, REQUIRED)
    trees.check_options("memory_layers.productkey_args", sizes, REQUIRED_OF_MEMORY)
    is_peer = bool(sizes["peer_variant"])
    trees.check_options(
        "memory_layers.productkey_args", sizes, {"swilu_projection": not is_peer, "mem_v_dim": -1}
    )
    width, heads = len(scale), theirs["n_heads"]
    mixer = GroupedQuery(
        num_heads=heads,
        num_kv_heads=theirs.get("n_kv_heads") or heads,
        head_dim=width // heads,
        rope_base=float(theirs["rope_theta"]),
        rope_layout="interleaved",
    )
    found = dict(
        num_keys=sizes["mem_n_keys"],
        key_dim=sizes["mem_k_dim"],
        retrieval_heads=sizes["mem_heads"],
        top_k=sizes["mem_knn"],
    )
    kind = RankOneExperts(**found) if is_peer else ProductKeys(**found, value_dim=width)
    block = functools.partial(PreNorm, width, mixer, norm_eps=float(theirs["norm_eps"]))
    chosen = {int(at) for at in sizes["layers"].split(",")}
    layers = tuple(at in chosen for at in range(theirs["n_layers"]))
    hidden = 1  # a SwiGLU's width is that of its arrays
    return _Model(block(SwiGLU(hidden)), block(kind), layers)


def _params(config: _Model, named: Arrays) -> Params:
    """Returns parameters, or gradients, from arrays by name; the shared table stands once."""
    ours: Params = {
        "embed": named["tok_embeddings.weight"],
        "head": named["output.weight"],
        "norm": named["norm.weight"],
        "layers": [
            _layer(config, under(named, f"layers.{at}."), has_memory)
            for at, has_memory in enumerate(config.layers)
        ],
    }
    first = config.layers.index(True)
    of = lambda name: named[f"layers.{first}.{MEMORY}.{name}.weight"]
    is_peer = isinstance(config.memory.feedforward, RankOneExperts)
    table = {"up": of("values_u"), "down": of("values_v")} if is_peer else of("values")
    return {**ours, "values": table}


def _layer(config: _Model, named: Arrays, has_memory: bool) -> Params:
    mixer = trees.narrow(config.plain.mixer, GroupedQuery)
    kv = mixer.num_kv_heads
    projections = {"query": ("wq", mixer.num_heads), "key": ("wk", kv), "value": ("wv", kv)}
    attention: Params = {
        ours: trees.to_heads(named[f"attention.{name}.weight"], heads)
        for ours, (name, heads) in projections.items()
    }
    attention["out"] = trees.from_heads(named["attention.wo.weight"], mixer.num_heads)
    norms = {"attention": named["attention_norm.weight"], "mlp": named["ffn_norm.weight"]}
    own = under(named, f"{MEMORY}.")
    return {"norms": norms, "attention": attention, **_feedforward(config, own, has_memory)}


def _feedforward(config: _Model, named: Arrays, has_memory: bool) -> Params:
    if not has_memory:
        names = {"gate": "w1", "up": "w3", "down": "w2"}
        return {"mlp": {ours: named[f"{name}.weight"].T for ours, name in names.items()}}
    kind: Any = config.memory.feedforward
    heads, n, k = kind.sizes
    query = "query_proj.query_mlps.0"
    found: Params = {
        "memory_keys": {
            "query": named[f"{query}.weight"].T.reshape(-1, heads, 2, k // 2),
            "query_bias": named[f"{query}.bias"].reshape(heads, 2, k // 2),
            "keys": named["keys"].reshape(heads, 2, n, k // 2),
        }
    }
    if isinstance(kind, RankOneExperts):
        return found
    gate, out = "swilu_projection", "value_proj"
    weights = {"gate": named[f"{gate}.weight"].T, "out": named[f"{out}.weight"].T}
    biases = {"gate_bias": named[f"{gate}.bias"], "out_bias": named[f"{out}.bias"]}
    return {**found, "memory_output": {**weights, **biases}}


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, has_aux=True)
def _graded(params: Params, tokens: Array, config: _Model) -> tuple[Array, Named]:
    """Returns the loss, and what the model computes by its name."""
    made: Named = {}
    inputs = tokens[:, :-1]
    along = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    context, x = Context(along), params["embed"][inputs]
    for at, (weights, has_memory) in enumerate(zip(params["layers"], config.layers, strict=True)):
        block = config.plain
        if has_memory:
            block, weights = config.memory, {**weights, "memory_values": params["values"]}
            made |= _found(weights, x, context, block, at)
        x = block.apply(weights, x, context)[0]
    hidden = norm.rms_norm(x, params["norm"], config.plain.norm_eps)
    made["logits"] = logits = hidden @ params["head"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return nats.mean(), made


def _found(weights: Params, x: Array, context: Context, block: PreNorm, at: int) -> Named:
    """Returns the values that each token of a memory layer reads, and their scores."""
    scale = weights["norms"]
    h = norm.rms_norm(x, scale["attention"], block.norm_eps)
    x = x + block.mixer.apply(weights, h, h, context)[0]
    h = norm.rms_norm(x, scale["mlp"], block.norm_eps)
    kind: Any = block.feedforward
    found = product_keys.search(h, **weights["memory_keys"], top_k=kind.top_k)
    return {f"slots/{at}": found.index, f"slot_scores/{at}": found.score}
