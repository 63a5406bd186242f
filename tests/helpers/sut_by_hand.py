"""The Sparse Universal Transformer's block in float64 NumPy, one row and token at a time."""

import math

import numpy as np

from recursia.blocks.pre_norm import PreNorm
from tests.helpers.blocks import flat
from tests.helpers.by_hand import gelu, layer_norm


def probabilities(w, x):
    """Returns a router's softmax for each token [T E]."""
    score = np.exp(np.tanh(x @ w["hidden"] + w["bias"]) @ w["out"])
    return score / score.sum(-1, keepdims=True)


def chosen(p, k):
    """Returns (expert, gate) of each of a token's best experts."""
    best = np.argsort(-p, kind="stable")[:k]
    return [(e, p[e] / (p[best].sum() + 1e-6)) for e in best]


def attention_by_hand(w, h, m, where, config, p):
    """Returns a row's mixture-of-experts attention of states `h` to keys made of `m`."""
    positions, segments, live = where
    key, value = (np.einsum("td,dnh->tnh", m, w["attention"][name]) for name in ("key", "value"))
    out = np.zeros_like(h)
    for t in np.flatnonzero(live):
        sees = (positions <= positions[t]) & (segments == segments[t])
        behind = np.minimum(positions[t] - positions[sees], config.num_distances - 1)
        for expert, gate in chosen(p[t], config.attention_top_k):
            query = (h[t] @ w["attention_experts"]["query"][expert]) / math.sqrt(config.head_dim)
            heads = []
            for n, q in enumerate(query.reshape(config.num_heads, config.head_dim)):
                score = np.exp(key[sees, n] @ q + (q @ w["relative"]["table"][n])[behind])
                heads.append(score / score.sum() @ value[sees, n])
            out[t] += gate * np.concatenate(heads) @ w["attention_experts"]["out"][expert]
    return out


def experts_by_hand(w, h, live, k, p):
    """Returns a row's mixture of feed-forward experts."""
    out = np.zeros_like(h)
    for t in np.flatnonzero(live):
        for e, gate in chosen(p[t], k):
            hidden = gelu(h[t] @ w["up"][e] + w["up_bias"][e])
            out[t] += gate * (hidden @ w["down"][e] + w["down_bias"][e])
    return out


def block_by_hand(w, x, memory, where, config):
    """Returns a row's new states, and the probabilities of both routers."""
    is_pre, config = isinstance(config, PreNorm), flat(config)
    norm = lambda x, name: layer_norm(x, w["norms"][name], config.norm_eps)
    before = norm if is_pre else lambda x, name: x
    after = norm if not is_pre else lambda x, name: x
    h, m = before(x, "attention"), before(memory, "attention")
    first = probabilities(w["attention_router"], h)
    x = after(x + attention_by_hand(w, h, m, where, config, first), "attention")
    h = before(x, "mlp")
    second = probabilities(w["router"], h)
    return after(x + experts_by_hand(w["experts"], h, where[2], config.top_k, second), "mlp"), (
        first,
        second,
    )
