"""A dense Llama's training step in plain PyTorch: what `train_step.py --torch` sets ours against.

Compiled with `torch.compile`, attention by `scaled_dot_product_attention`, fused AdamW, float32
weights under autocast. The same function as our block of `recursia.configs.blocks.llama` in an
unshared stack.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recursia import budget, kinds, settings
from recursia.architecture import Model
from recursia.errors import ConfigError, UserError

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # relative, of a first step's metrics


class Norm(nn.Module):
    """Root-mean-square normalisation, in float32 and back before the scale."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` normalised, in its dtype."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype) * self.scale.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates heads [B N T H], pairs being one number of each half."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Rotary grouped-query attention, then SwiGLU, each after a norm and added to its input."""

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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns the next hidden states [B T D]."""
        h = self.norm_attention(x)
        query, key, value = (
            part(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        query, key = (rotate(part, cos, sin) for part in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norm_mlp(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Tokens and targets to the mean cross-entropy, in nats per token."""

    def __init__(self, model: Model, vocab_size: int, seq_len: int):
        super().__init__()
        plan, self.dtype = model.block, getattr(torch, model.dtype)
        self.embedding = nn.Embedding(vocab_size, plan.embed_dim)
        self.blocks = nn.ModuleList(Block(plan) for _ in range(model.num_layers))
        self.norm = Norm(plan.embed_dim, plan.norm_eps)
        self.head = nn.Linear(plan.embed_dim, vocab_size, bias=model.embed.has_head_bias)
        if model.embed.is_tied:
            self.head.weight = self.embedding.weight
        half = plan.mixer.head_dim // 2
        waves = plan.mixer.rope_base ** (torch.arange(half) / half)
        angle = torch.arange(seq_len)[:, None] / waves
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of a batch [B T]."""
        x = self.embedding(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def load(model: Llama, weights: dict[str, Any]) -> None:
    """Copies our parameters of the same model into it."""
    put = lambda into, array: into.data.copy_(torch.tensor(np.asarray(array)))
    core = weights["core"]  # banks [R L ...] of one recursion
    put(model.embedding.weight, weights["embed"]["table"])
    put(model.norm.scale, weights["final_norm"])
    for ours, place in (("head", model.head.weight), ("bias", model.head.bias)):
        if ours in weights["embed"]:
            put(place, weights["embed"][ours])
    for index, block in enumerate(model.blocks):
        for name in ("attention", "mlp"):
            put(getattr(block, f"norm_{name}").scale, core["norms"][name][0, index])
            for matrix, bank in core[name].items():
                linear = getattr(block, matrix)
                put(linear.weight, np.asarray(bank[0, index]).reshape(linear.in_features, -1).T)


def make_step(
    run: settings.Run, vocab_size: int, weights: dict[str, Any], device: str
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns a function from tokens and targets [B T] to the loss and the gradient's norm.

    Each call updates the weights once. On a GPU it is compiled, under autocast.

    Args:
      run: its model is a plain stack of Llama blocks.
      vocab_size: rows of the embedding.
      weights: ours, to start from.
      device: "cuda" or "cpu".

    Raises:
      ConfigError: for another model.
    """
    plan = run.model
    block = plan.block
    names = tuple(map(kinds.kind_of, (block, block.mixer, block.feedforward)))
    is_plain = names == ("pre_norm", "grouped_query", "swiglu") and block.norm == "rms"
    if not is_plain or plan.depth.num_recursions > 1:
        raise ConfigError("--torch: has only the plain stack of Llama blocks")
    model = Llama(plan, vocab_size, run.train.seq_len)
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
            loss = loss_of(tokens, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip_norm or float("inf"))
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach(), norm

    return step


def in_torch(
    run: settings.Run,
    weights: dict[str, Any],
    rows: dict[str, np.ndarray],
    ours: dict[str, float],
) -> tuple[Callable[[int], None], dict[str, float]]:
    """Returns what makes so many steps and waits for them, and the metrics of the first step.

    Args:
      run: see `make_step`, as for `weights`.
      weights: see there.
      rows: the batch of every step.
      ours: `loss` and `gradient_norm` of our first step, which this one's have to be.

    Raises:
      UserError: if they are not: two models that differ are not timed.
    """
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    step = make_step(run, budget.vocab_size(run), weights, device)
    batch = [torch.tensor(rows[name], device=device).long() for name in ("tokens", "targets")]
    first = dict(zip(("loss", "gradient_norm"), map(float, step(*batch)), strict=True))
    for name, value in ours.items():
        if not abs(first[name] / value - 1) <= TOLERANCE[run.model.dtype]:
            raise UserError(f"--torch: {name} is {first[name]:.6g}, and {value:.6g} in ours")

    def turn(count: int) -> None:
        for _ in range(count):
            step(*batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return turn, first
