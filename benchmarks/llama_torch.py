"""Training steps of Llama blocks in plain PyTorch, the baseline of `train_step.py --torch`.

The blocks may be shared over recursions, and the tokens of a recursion chosen by a router (expert
choice of Mixture-of-Recursions, Bae et al. 2025, arXiv 2507.10524). It uses `torch.compile` on a
GPU, `scaled_dot_product_attention`, fused AdamW and float32 weights under autocast. The model
computes the same function as ours with the block `recursia.configs.blocks.llama`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rivals import check_llama
from torch import Tensor, nn

from recursia import kinds, settings
from recursia.architecture import Model
from recursia.depth import expert_choice

Keys = tuple[Tensor, Tensor]  # rotated keys and values of all tokens [B K T H]


class Norm(nn.Module):
    """Root-mean-square normalisation in float32; the scale is applied in the input's dtype."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` normalised, in its dtype."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype) * self.scale.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates heads [B N T H]; a pair has one element of each half."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Rotary grouped-query attention, then SwiGLU, as pre-norm residual branches."""

    def __init__(self, block: Any):
        super().__init__()
        mixer, width = block.mixer, block.feedforward.mlp_dim
        d, h, heads = block.embed_dim, mixer.head_dim, mixer.num_heads
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.head_dim = h
        self.norm_attention, self.norm_mlp = (Norm(d, block.norm_eps) for _ in range(2))
        self.query, self.out = linear(d, heads * h), linear(heads * h, d)
        self.key, self.value = (linear(d, mixer.num_kv_heads * h) for _ in range(2))
        self.gate, self.up = (linear(d, width) for _ in range(2))
        self.down = linear(width, d)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Keys | None, mask: Tensor | None
    ) -> tuple[Tensor, Keys]:
        """Returns the next hidden states [B T D], and the keys and values that it read.

        Args:
          x: states of the tokens that are processed.
          cos: of their angles [B or 1, 1, T, H / 2].
          sin: likewise.
          keys: those of another recursion; None makes its own.
          mask: which of those keys each token sees [B 1 T S]; None is causal.
        """
        h = self.norm_attention(x)
        split = lambda part: part(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query = rotate(split(self.query), cos, sin)
        if keys is None:
            keys = rotate(split(self.key), cos, sin), split(self.value)
        mixed = F.scaled_dot_product_attention(
            query, *keys, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norm_mlp(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), keys


class Llama(nn.Module):
    """The model and its losses: mean cross-entropy in nats per token, and the routers'."""

    def __init__(self, model: Model, vocab_size: int, seq_len: int):
        super().__init__()
        plan, depth, schedule = model.block, model.depth, model.schedule
        self.dtype, self.depth = getattr(torch, model.dtype), depth
        self.entries = schedule.by_recursion("mlp").tolist()  # [R][K] entries of the core's bank
        self.reads_first = not schedule.makes_all_keys
        self.counts = None
        if kinds.kind_of(depth) == "expert_choice":
            self.counts = expert_choice.counts(depth, seq_len)
            self.routers = nn.Parameter(torch.zeros(len(self.counts), plan.embed_dim))
        blocks = lambda count: nn.ModuleList(Block(plan) for _ in range(count))
        self.prelude, self.coda = (blocks(model.ends[name]) for name in ("prelude", "coda"))
        self.core = blocks(1 + max(map(max, self.entries)))
        self.embedding = nn.Embedding(vocab_size, plan.embed_dim)
        self.norm = Norm(plan.embed_dim, plan.norm_eps)
        self.head = nn.Linear(plan.embed_dim, vocab_size, bias=model.embed.has_head_bias)
        if model.embed.is_tied:
            self.head.weight = self.embedding.weight
        half = plan.mixer.head_dim // 2
        waves = plan.mixer.rope_base ** (torch.arange(half) / half)
        angle = torch.arange(seq_len)[:, None] / waves
        self.register_buffer("cos", angle.cos()[None, None])
        self.register_buffer("sin", angle.sin()[None, None])

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns the cross-entropy of a batch [B T], and what the routers' loss adds."""
        x = self.embedding(tokens).to(self.dtype)
        for block in self.prelude:
            x, _ = block(x, self.cos, self.sin, None, None)
        x, added = self.recur(x) if self.counts is None else self.route(x)
        for block in self.coda:
            x, _ = block(x, self.cos, self.sin, None, None)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), added

    def recur(self, x: Tensor) -> tuple[Tensor, float]:
        """Returns the states after all recursions of all tokens, and no further loss."""
        made: list[Keys | None] = [None] * len(self.entries[0])
        for row in self.entries:
            for place, entry in enumerate(row):
                x, keys = self.core[entry](x, self.cos, self.sin, made[place], None)
                made[place] = keys if self.reads_first else None
        return x, 0.0

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states after each recursion of the tokens it chose, and the routers' loss."""
        made: list[Keys | None] = [None] * len(self.entries[0])
        length, loss = x.shape[1], x.new_zeros(())
        active = torch.arange(length, device=x.device).expand(len(x), length)
        for router, count, row in zip(self.routers, self.counts, self.entries, strict=True):
            h = _rows(x, active)
            logits = h.float() @ router
            gate = self.depth.alpha * torch.sigmoid(logits)
            chosen = gate.topk(count, 1).indices.sort(1).values
            is_chosen = torch.zeros_like(logits).scatter(1, chosen, 1.0)
            loss = loss + F.binary_cross_entropy_with_logits(logits, is_chosen)
            active, y = active.gather(1, chosen), _rows(h, chosen)
            cos, sin = (each[0, 0][active][:, None] for each in (self.cos, self.sin))
            mask = None
            if self.reads_first and made[0] is not None and count < length:
                mask = (active[..., None] >= torch.arange(length, device=x.device))[:, None]
            for place, entry in enumerate(row):
                y, keys = self.core[entry](y, cos, sin, made[place], mask)
                made[place] = keys if self.reads_first else None
            update = gate.gather(1, chosen)[..., None] * y.float()
            index = active[..., None].expand(-1, -1, x.shape[-1])
            x = x.scatter_add(1, index, update.to(x.dtype))
        return x, self.depth.aux_loss_weight * loss


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns the states [B C D] of the tokens at `index` [B C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def load(model: Llama, weights: dict[str, Any]) -> None:
    """Copies the parameters of the same JAX model into the PyTorch model."""
    put = lambda into, array: into.data.copy_(torch.tensor(np.asarray(array)))
    put(model.embedding.weight, weights["embed"]["table"])
    put(model.norm.scale, weights["final_norm"])
    for ours, place in (("head", model.head.weight), ("bias", model.head.bias)):
        if ours in weights["embed"]:
            put(place, weights["embed"][ours])
    if model.counts is not None:
        put(model.routers, weights["depth"]["router"]["out"])
    for name in ("prelude", "core", "coda"):
        for index, block in enumerate(getattr(model, name)):
            bank = weights[name]
            for branch in ("attention", "mlp"):
                put(getattr(block, f"norm_{branch}").scale, bank["norms"][branch][index])
                for matrix, entries in bank[branch].items():
                    linear = getattr(block, matrix)
                    array = np.asarray(entries[index])
                    put(linear.weight, array.reshape(linear.in_features, -1).T)


def make_step(
    run: settings.Run, vocab_size: int, weights: dict[str, Any], device: str
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns a function from tokens and targets [B T] to the loss and the gradient's norm.

    Each call updates the weights once. On a GPU it is compiled, under autocast.

    Args:
      run: its model is one of `rivals.check_llama`.
      vocab_size: rows of the embedding.
      weights: ours, to start from.
      device: "cuda" or "cpu".

    Raises:
      ConfigError: for another model.
    """
    check_llama(run)
    model = Llama(run.model, vocab_size, run.train.seq_len)
    load(model, weights)
    model.to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    rates = run.optimizer
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": rates.weight_decay}, {"params": others}],
        lr=rates.learning_rate,
        betas=(rates.b1, rates.b2),
        eps=rates.eps,
        weight_decay=0.0,
        fused=True,
    )
    loss_of = torch.compile(model) if device == "cuda" else model

    def step(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        is_mixed = model.dtype != torch.float32
        with torch.autocast(device, model.dtype if is_mixed else None, enabled=is_mixed):
            loss, added = loss_of(tokens, targets)
        (loss + added).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip_norm or float("inf"))
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach(), norm

    return step
