"""MoEUT in float64 NumPy, one row and token at a time, and its regulariser."""

import numpy as np

from tests.helpers import by_hand
from tests.helpers.blocks import flat
from tests.helpers.by_hand import layer_norm


def turned(heads, where, block):
    """Returns heads whose first part is rotated."""
    width = int(block.rope_fraction * block.head_dim) // 2 * 2
    first = by_hand.rotate(heads[..., :width], where[0], block.rope_base)
    return np.concatenate([first, heads[..., width:]], -1)


def chosen(logits, k):
    """Returns a token's (expert, gate) pairs."""
    gates = by_hand.sigmoid(logits)
    return [(e, gates[e]) for e in np.argsort(-gates, kind="stable")[:k]]


def layer(w, x, where, block, source=None):
    """Returns a layer's output, its (keys, values) and its logits by router."""
    block = flat(block)
    h, a = layer_norm(x, w["norms"]["attention"], block.norm_eps), block.num_attention_experts
    heads = lambda name: np.einsum("td,dnh->tnh", h, w["attention"][name])
    banks, seen = w["attention_experts"], {}
    pairs = list(np.ndindex(len(x), block.num_heads))
    if a > 1:
        for name in ("value", "out") if source is None else ("out",):
            seen[name] = np.einsum("td,dne->tne", h, w["attention_router"][name])
    k = block.attention_top_k
    if source is None:
        value = np.zeros((len(x), block.num_heads, block.head_dim))
        for t, n in pairs:
            if a > 1:
                for e, gate in chosen(seen["value"][t, n], k):
                    value[t, n] += gate * (x[t] @ banks["value"][n * a + e])
            else:
                value[t, n] = x[t] @ banks["value"][:, n]
        source = turned(heads("key"), where, block), value
    read = by_hand.attend(turned(heads("query"), where, block), *source, where, where)
    out = np.zeros_like(x)
    for t, n in pairs:
        mixed = read[t, n]
        if a > 1:
            for e, gate in chosen(seen["out"][t, n], k):
                out[t] += gate * (mixed @ banks["out"][n * a + e])
        else:
            gate = by_hand.sigmoid(h[t] @ w["attention_router"]["out"][:, n])
            out[t] += gate * mixed @ banks["out"][n]
    x = x + out
    seen["router"] = layer_norm(x, w["norms"]["experts"], block.norm_eps) @ w["router"]
    out = np.zeros_like(x)
    for t in range(len(x)):
        for e, gate in chosen(seen["router"][t], block.top_k):
            hidden = np.maximum(x[t] @ w["experts"]["up"][e], 0)
            out[t] += gate * (hidden @ w["experts"]["down"][e])
    return x + out, source, seen


def run(weights, tokens, config, segments=None):
    """Returns logits [B T V], and the routers' logits: by row, then (name, block), of all uses."""
    rows, records = [], []
    for b, row in enumerate(np.asarray(tokens)):
        segment = np.ones(len(row)) if segments is None else np.asarray(segments)[b]
        where = np.stack([np.arange(len(row)), segment])
        x, made, record = np.asarray(weights["embed"]["table"], np.float64)[row], {}, {}
        plan = config.schedule
        for r, k in np.ndindex(plan.num_recursions, plan.num_blocks):
            w, source = by_hand.step_weights(weights, plan, r, k), by_hand.keys_of(plan, r, k, made)
            x, made[r * plan.num_blocks + k], seen = layer(w, x, where, config.block, source)
            for name, logits in seen.items():
                record.setdefault((name, k), []).append(logits)
        x = layer_norm(x, by_hand.pick(weights["final_norm"], ...), config.block.norm_eps)
        head, bias = (np.asarray(weights["embed"][name], np.float64) for name in ("head", "bias"))
        rows.append(x @ head.T + bias)
        records.append({name: np.concatenate(logits) for name, logits in record.items()})
    return np.stack(rows), records


def regulariser(records, names):
    """Returns the sum over stored routers of minus the entropy of mean probabilities."""

    def one(logits):
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mean = p.mean(0)  # over the tokens of every repeat
        return (mean * np.log(mean)).sum(-1).mean()  # over heads

    keys = [key for key in records[0] if key[0] in names]
    return sum(np.mean([one(record[key]) for record in records]) for key in keys)
