"""A model with weights shared across depth, in plain PyTorch: one file, for `trust_remote_code`.

Parameters have the names and shapes of the trainer's tree: in `core`, the leading axis of a weight
counts the entries of its bank, and `plan` in the configuration says which entry each step uses. All
tokens are computed in every recursion, and those that a router lets stop are masked: results are
those of a program that leaves them out. Nothing is cached between tokens.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class RecursiaConfig(PretrainedConfig):
    """Settings of a model.

    Attributes:
      model: its fields, as the trainer names them.
      plan: tables of the schedule: for each step of the core the entry of each bank, whose keys it
        reads and how many of them; and how many blocks prelude and coda have.
      shapes: of every parameter, by name.
      mode: how routers choose: "causal", each token by itself, as decoding must; or "eval", the
        best of the sequence, as published.
    """

    model_type = "recursia"

    def __init__(self, model=None, plan=None, shapes=None, mode="causal", **others):
        """Takes the fields."""
        self.model, self.plan, self.shapes, self.mode = model or {}, plan or {}, shapes or {}, mode
        others.setdefault("use_cache", False)
        super().__init__(**others)


def plant(module, path, shape):
    """Adds a parameter under a dotted name."""
    first, _, rest = path.partition(".")
    if not rest:
        module.register_parameter(first, nn.Parameter(torch.empty(shape)))
        return
    if first not in module._modules:
        module.add_module(first, nn.Module())
    plant(module._modules[first], rest, shape)


def rotate(x, positions, mixer):
    """Returns queries or keys [B T N H], rotated by the positions of their tokens."""
    if mixer["rope_base"] is None:
        return x
    width = int(mixer["rope_fraction"] * x.shape[-1]) // 2 * 2
    turned, rest = x[..., :width].float(), x[..., width:]
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=x.device) / half
    waves = stretched(mixer["rope_base"] ** exponents, mixer["rope_stretch"])
    angle = positions[..., None, None].float() / waves
    cos, sin = angle.cos(), angle.sin()
    shape, axis = ((2, half), -2) if mixer["rope_layout"] == "halves" else ((half, 2), -1)
    a, b = turned.reshape(*turned.shape[:-1], *shape).unbind(axis)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], axis).flatten(-2)
    return torch.cat([turned.to(x.dtype), rest], -1)


def stretched(waves, stretch):
    """Returns wavelengths, longer for documents longer than those of training."""
    factor, length = stretch["factor"], stretch["original_length"]
    if not length:
        return waves * factor
    fits = length / (2 * math.pi * waves)
    kept = ((fits - stretch["low"]) / (stretch["high"] - stretch["low"])).clamp(0, 1)
    return waves / ((1 - kept) / factor + kept)


def rms(x, scale, eps):
    """Returns the root-mean-square normalisation."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * scale


def linear(x, weight, taken=1):
    """Returns states times a weight of which the first `taken` axes are the features taken."""
    rows = math.prod(weight.shape[:taken])
    y = x.flatten(-taken) @ weight.reshape(rows, -1) if taken > 1 else x @ weight.reshape(rows, -1)
    return y.reshape(*y.shape[:-1], *weight.shape[taken:])


def attention(query, key, value, mask, scale, cap):
    """Returns what queries [B T N H] read of those keys [B S K H] that `mask` [B T S] shows."""
    times = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(times, 2), value.repeat_interleave(times, 2)
    scores = torch.einsum("btnh,bsnh->bnts", query, key).float() * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    scores = scores.masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    mixed = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1).to(value.dtype), value)
    return torch.where(mask.any(-1)[..., None, None], mixed, torch.zeros_like(mixed))


class RecursiaForCausalLM(PreTrainedModel, GenerationMixin):
    """Tokens to logits."""

    config_class = RecursiaConfig
    _supports_cache_class = False

    def __init__(self, config):
        """Makes parameters of the shapes that the configuration says."""
        super().__init__(config)
        for path, shape in config.shapes.items():
            plant(self, path, shape)
        self.plan, self.settings = config.plan, config.model
        self.block, self.depth_settings = config.model["block"], config.model["depth"]
        self.post_init()

    def _init_weights(self, module):
        for each in module.parameters(recurse=False):
            nn.init.normal_(each, std=0.02)

    def get_input_embeddings(self):
        """Returns None: the table is a parameter."""
        return None

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        """Returns the whole text: nothing is kept between tokens."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        """Returns logits [B T V], and with `labels` the mean cross-entropy of the next token."""
        shape = input_ids.shape
        live = torch.ones(shape, dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            live = attention_mask.bool()
        self.live, self.positions = live, (live.long().cumsum(-1) - 1).clamp(min=0)
        self.made = {}
        named = dict(self.named_parameters())
        self.weights = {name: value for name, value in named.items() if name[:5] != "core."}
        self.core_weights = {n[5:]: value for n, value in named.items() if n[:5] == "core."}
        x = self._logits(self._core(self._embed(input_ids)))
        if labels is None:
            return CausalLMOutput(logits=x)
        loss = F.cross_entropy(x[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=x)

    def _embed(self, tokens):
        embed = self.settings["embed"]
        x = self.weights["embed.table"][tokens]
        x = x @ self.weights["embed.projection"] if embed["factor_dim"] else x
        return self._end("prelude", x * embed["scale"])

    def _logits(self, x):
        if self.settings["loop_norm"] == "last":
            x = self._final(x)
        x = self._end("coda", x)
        if self.settings["loop_norm"] != "each" or self.plan["coda"]:
            x = self._final(x)
        if "embed.projection" in self.weights:
            x = x @ self.weights["embed.projection"].T
        head = self.weights.get("embed.head", self.weights["embed.table"])
        logits = (x @ head.T).float()
        logits = logits + self.weights["embed.bias"] if "embed.bias" in self.weights else logits
        cap = self.settings["embed"]["logit_cap"]
        return cap * torch.tanh(logits / cap) if cap else logits

    def _final(self, x):
        is_there = any(name.startswith("final_norm") for name in self.weights)
        if (not is_there and self.block["norm"] != "unscaled") or self.block["kind"] == "post_norm":
            return x
        return self._norm(x, self.weights, "final_norm")

    def _norm(self, x, weights, name):
        kind, eps = self.block["norm"], self.block["norm_eps"]
        if kind in ("layer", "unbiased_layer"):
            y = F.layer_norm(x.float(), x.shape[-1:], None, None, eps).to(x.dtype)
            return y * weights[f"{name}.scale"] + weights.get(f"{name}.bias", 0.0)
        return rms(x, weights[name] if kind == "rms" else 1.0, eps)

    def _end(self, name, x):
        """Applies the blocks of an end, which share nothing."""
        for layer in range(self.plan[name]):
            mine = [n for n in self.weights if n.startswith(f"{name}.")]
            ours = {n[len(name) + 1 :]: self.weights[n][layer] for n in mine}
            x, _ = self._apply(x, ours, self.live, 0, None)
        return x

    def _step(self, x, step, live):
        """Applies the block of one step of the core; only `live` tokens are seen by others."""
        owner = self.plan["owners"][step]
        source = self.made[owner] if owner != step else None
        window = self.plan["windows"][step]
        x, keys = self._apply(x, self._bound(step), live, window, source)
        if source is None:
            self.made[step] = keys
        return x

    def _bound(self, step):
        """Returns the weights of a step, adapters added."""
        entries, found = self.plan["entries"], {}
        for name, bank in self.core_weights.items():
            slot, first = name.split(".")[:2] if "." in name else (name, "")
            is_keys = f"{slot}.{first}" in self.plan["key_weights"]
            found[name] = bank[entries[f"{slot}.keys" if is_keys else slot][step]]
        for name in [name for name in found if "_lora." in name and name.endswith(".a")]:
            a, b = found.pop(name), found.pop(f"{name[:-2]}.b")
            base = name[:-2].replace("_lora.", ".", 1)
            found[base] = found[base] + self.settings["weights"]["scale"] * torch.tensordot(a, b, 1)
        return found

    def _recursion(self, x, recursion, live):
        blocks = self.plan["num_blocks"]
        for step in range(recursion * blocks, (recursion + 1) * blocks):
            x = self._step(x, step, live)
        return self._final(x) if self.settings["loop_norm"] == "each" else x

    def _core(self, x):
        kind = self.depth_settings["kind"]
        if kind == "fixed" and self.plan["order"] == "sequence":
            for step in self.plan["steps"]:
                x = self._step(x, step, self.live)
            return x
        return getattr(self, f"_{kind}")(x)

    def _fixed(self, x):
        for recursion in range(self.plan["num_recursions"]):
            x = self._recursion(x, recursion, self.live)
        return x

    def _exit_gate(self, x):
        """Takes of each token the state after the recursion at which it stops."""
        left, running = x.new_zeros(x.shape[:2]), torch.ones_like(self.live)
        least, chosen, count = self.depth_settings["exit_threshold"], x, self.plan["num_recursions"]
        for recursion in range(count):
            x = self._recursion(x, recursion, self.live)
            score = x.float() @ self.weights["depth.gate.weight"] + self.weights["depth.gate.bias"]
            left = left + F.logsigmoid(-score)
            stops = left.exp() <= 1 - least if recursion < count - 1 else torch.ones_like(running)
            chosen = torch.where((running & stops)[..., None], x, chosen)
            running = running & ~stops
        return chosen

    def _route(self, name, x, at=None):
        """Returns the logits of a router."""
        take = lambda weight: weight if at is None else weight[at]
        h = x.float()
        if (hidden := self.weights.get(f"depth.{name}.hidden")) is not None:
            h = F.gelu(h @ take(hidden))
        return h @ take(self.weights[f"depth.{name}.out"])

    def _visible(self, recursion, going, active):
        """Returns the tokens whose keys a recursion makes."""
        if self.plan["sources"][recursion]:
            return self.live if recursion == 0 else self.live & active
        return self.live & going

    def _expert_choice(self, x):
        depth, active, before = self.depth_settings, self.live, 1.0
        for recursion, share in enumerate(depth["capacity"]):
            at = self.plan["entries"]["router"][recursion * self.plan["num_blocks"]]
            logits = self._route("router", x / depth["temperature"], at)
            gate = squashed(logits, depth["score"], depth["alpha"])
            if self.config.mode == "eval":
                going = active & self._best(gate.masked_fill(~active, -math.inf), share)
            elif share < before:
                decides = logits
                if depth["sampling"] == "aux_router":
                    decides = self._route("aux_router", x, at)
                going = active & (decides >= 0)
            else:
                going = active
            y = self._recursion(x, recursion, self._visible(recursion, going, active))
            x = torch.where(going[..., None], updated(x, y, gate, depth["gating"]), x)
            active, before = going, share
        return x

    def _best(self, scores, share):
        """Returns which tokens are the best of their part of a row; ties go to the earlier."""
        rows, parts = len(scores), self.depth_settings["parts"]
        lengths = self.live.reshape(rows, parts, -1).sum(-1)
        most = [[max(1, int(share * n)) if n else 0 for n in row] for row in lengths.tolist()]
        order = scores.reshape(rows, parts, -1).argsort(dim=-1, descending=True, stable=True)
        limit = torch.tensor(most, device=scores.device)[..., None]
        return (order.argsort(-1) < limit).reshape(scores.shape)

    def _token_choice(self, x):
        depth = self.depth_settings
        logits = self._route("router", x / depth["temperature"])
        scores = logits.softmax(-1) if depth["score"] == "softmax" else logits.sigmoid()
        scores = depth["alpha"] * scores
        taken = 1 + (scores + self.weights.get("depth.bias", 0.0)).argmax(-1)
        gate = scores.gather(-1, taken[..., None] - 1)[..., 0]
        states, done = x, x
        for recursion in range(self.plan["num_recursions"]):
            going = taken > recursion
            y = self._recursion(states, recursion, self._visible(recursion, going, going))
            last = (taken == recursion + 1)[..., None]
            done = torch.where(last, updated(x, y, gate, depth["gating"]), done)
            states = torch.where(going[..., None], y, states)
        return done

    def _apply(self, x, weights, live, window, source):
        """Applies a block once; returns the states and the keys and values that it made."""
        kind = self.block["kind"]
        norm = lambda x, name: self._norm(x, weights, f"norms.{name}")

        def before(x, name):
            if kind == "post_norm":
                return x, x
            h = norm(x, name)
            return (x if kind == "peri_norm" else h), h

        def after(x, y, name):
            if kind == "post_norm":
                return norm(x + y, name)
            if kind == "pre_post_norm":
                return norm(x + y, f"after_{name}")
            return x + (norm(y, f"after_{name}") if kind == "sandwich_norm" else y)

        y, keys = self._mix(*before(x, "attention"), weights, live, window, source)
        mixed = after(x, y, "attention")
        read = before(x if kind == "parallel_norm" else mixed, "mlp")
        return after(mixed, self._feed(*read, weights), "mlp"), keys

    def _mix(self, x, h, weights, live, window, source):
        mixer = self.block["mixer"]

        def project(name, x, taken=1):
            y = linear(x, weights[f"attention.{name}"], taken)
            bias = weights.get(f"attention.{name}_bias")
            y = y if bias is None else y + bias
            scale = weights.get(f"attention.{name}_norm")
            return y if scale is None else rms(y, scale, mixer["head_norm_eps"])

        query = rotate(project("query", h), self.positions, mixer)
        if source is None:
            source = rotate(project("key", h), self.positions, mixer), project("value", x), live
        key, value, seen = source
        length = x.shape[1]
        along = torch.arange(length, device=x.device)
        mask = (along[:, None] >= along)[None] & seen[:, None]
        if window:
            mask = mask & (self.positions[:, :, None] - self.positions[:, None] < window)
        scale = mixer["score_scale"] or mixer["head_dim"] ** -0.5
        mixed = attention(query, key, value, mask, scale, mixer["score_cap"])
        if mixer["is_gated"]:
            mixed = mixed * project("gate", h).sigmoid()
        return project("out", mixed, 2), source

    def _feed(self, x, h, weights):
        kind, w = self.block["feedforward"]["kind"], lambda name: weights[f"mlp.{name}"]
        if kind in ("relu", "gelu"):
            bias = lambda name: weights.get(f"mlp.{name}_bias", 0.0)
            hidden = h @ w("up") + bias("up")
            hidden = F.relu(hidden) if kind == "relu" else F.gelu(hidden)
            return hidden @ w("down") + bias("down")
        gate = h @ w("gate")
        gate = F.silu(gate) if kind == "swiglu" else F.gelu(gate, approximate="tanh")
        return (gate * (x @ w("up"))) @ w("down")


def squashed(logits, score, alpha):
    """Returns the factor of a token's update."""
    if score == "none":
        return logits
    return alpha * (logits.sigmoid() if score == "sigmoid" else logits.tanh())


def updated(x, y, gate, gating):
    """Returns a token's state after a recursion that turned `x` into `y`."""
    gate = gate[..., None].to(x.dtype)
    if gating == "weighted":
        return x + gate * y
    if gating == "additive":
        return x + y
    return x + gate * (y - x) if gating == "delta" else y
