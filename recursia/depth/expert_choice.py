"""Each recursion picks the tokens that go on: expert choice of Mixture-of-Recursions.

Bae et al. 2025, arXiv 2507.10524. Recursion r keeps the best-scored `int(capacity[r] * T)` of the
tokens that recursion r-1 kept, of a row with T tokens besides padding. Shapes shrink with capacity,
so recursions are unrolled where it falls and scanned where it does not. A token's choice looks at
the scores of later tokens: training and the paper's evaluation are not causal. In causal mode a
token goes on if its own score is above the middle: the router's, which the auxiliary loss trains
for it, or an auxiliary router's.
"""

import dataclasses
import functools
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recursia import batch, injection, ranges
from recursia import params as parameters
from recursia.depth import capacity as places
from recursia.depth import routing
from recursia.depth.policy import Aux, Call, Mode, Pass, Policy
from recursia.depth.routing import pick, put, select, statistics, take
from recursia.layers.attention import Context
from recursia.params import at
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Made, Recursion, Stack

_Carry = tuple[Array, Array | None, Array | None]  # states, places of active tokens, is_live
AUX_LR_SCALE = 10.0  # of the auxiliary router's learning rate, as released


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Policy):
    """Expert choice.

    Attributes:
      capacity: fraction of all tokens that each recursion keeps, never growing; None takes
        (R - r) / R for r = 0 .. R-1.
      alpha: largest gate.
      score: how a logit becomes a gate.
      gating: how the gate enters a token's state.
      router: "linear", or "mlp" with one hidden layer.
      temperature: divides what the router sees.
      sampling: whose score decides in causal mode. "aux_loss": the router's; "aux_router": that of
        another router, which reads the same states at ten times the learning rate, and through
        which no gradient reaches the rest of the model.
      aux_loss_weight: of the cross-entropy between the logit that decides and whether its token was
        kept, summed over recursions.
      z_loss_weight: of the mean squared logit, summed over recursions.
      parts: equal parts of a sequence, each of which keeps the same number of its own tokens. With
        a multiple of `mesh.context`, choosing and moving tokens crosses no device; 1 compares the
        whole sequence, which then has to come together.
      capacity_warmup_steps: training steps in which capacities fall from 1 along half a cosine;
        they compute every token, and the program is compiled once more after them.
    """

    slots = ("router",)

    capacity: tuple[float, ...] | None = None
    alpha: float = 0.1
    score: routing.Score = "sigmoid"
    gating: routing.Gating = "weighted"
    router: routing.Kind = "linear"
    temperature: float = 1.0
    sampling: Literal["aux_loss", "aux_router"] = "aux_loss"
    aux_loss_weight: float = 0.001
    z_loss_weight: float = 0.0
    parts: int = 1
    capacity_warmup_steps: int = 0

    def __post_init__(self):
        super().__post_init__()
        count = self.num_recursions
        if self.capacity is None:
            linear = tuple((count - r) / count for r in range(count))
            object.__setattr__(self, "capacity", linear)
        if len(self.capacity) != count:
            raise ValueError(
                f"capacity: got {len(self.capacity)} numbers for num_recursions {count}; give one "
                "for each recursion, or None"
            )
        if not all(0 < c <= 1 for c in self.capacity) or any(
            a < b for a, b in itertools.pairwise(self.capacity)
        ):
            raise ValueError(
                f"capacity: got {self.capacity}, takes fractions of all tokens in (0, 1] that "
                "never grow: a recursion keeps some of those the one before kept"
            )
        weights = ("aux_loss_weight", "z_loss_weight")
        ranges.at_least(0, self, "alpha", "capacity_warmup_steps", *weights)
        ranges.at_least(1, self, "parts")
        ranges.above(0, self, "temperature")

    def specs(self, schedule: Schedule, embed_dim: int) -> dict[str, Any]:
        """Returns the routers' banks: one entry a recursion unless slot "router" varies so."""
        bank = lambda each: parameters.stack(each, (1 + max(_router_entries(schedule)),), (None,))
        found = {"router": bank(routing.specs(self.router, embed_dim))}
        if self.sampling == "aux_router":
            found["aux_router"] = bank(routing.specs(self.router, embed_dim, lr_scale=AUX_LR_SCALE))
        return found

    def check(self, schedule: Schedule, coda: int, inject: injection.Injection) -> None:
        """Refuses a walk block by block: a token is routed for a whole recursion.

        Raises:
          ValueError: for order "sequence", or routers that vary along blocks.
        """
        super().check(schedule, coda, inject)
        if any(len(set(row)) > 1 for row in schedule.by_recursion("router").tolist()):
            raise ValueError(
                "varies.router: a recursion has one router; let it vary by 'recursion'"
            )

    def check_length(self, seq_len: int) -> None:
        """Refuses sequences that do not fall into `parts`.

        Raises:
          ValueError: with both numbers.
        """
        if seq_len % self.parts:
            raise ValueError(
                f"model.depth.parts: {self.parts} do not divide the {seq_len} tokens of "
                "train.seq_len; change one of them"
            )

    def run(
        self,
        stack: Stack,
        params: dict[str, Any],
        x: Float[Array, "B T D"],
        context: Context,
        call: Call,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Returns the states after routing.

        Args:
          stack: the core.
          params: the routers.
          x: hidden states of all tokens.
          context: where they stand.
          call: in modes "train" and "eval" recursions keep the best tokens, in "causal" each token
            decides alone; the step of training is read while capacities warm up.
        """
        routers = at(params, np.array(_router_entries(stack.schedule)))
        is_warming = call.mode == "train" and self.capacity_warmup_steps > 0
        if is_warming and call.step is None:
            raise ValueError(
                "step: None; expert_choice with capacity_warmup_steps trains at a step"
            )
        if call.mode == "causal" or is_warming:
            step = call.step if is_warming else None
            x, out, report = _masked(stack, routers, x, context, self, step)
        else:
            x, out, report = _gathered(stack, routers, x, context, self)
        losses = {"router": self.aux_loss_weight * out["router_cross_entropy"].sum()}
        if self.z_loss_weight:
            losses["router_z"] = self.z_loss_weight * out["router_z"].sum()
        state, is_kept = out.pop("state"), out.pop("is_kept")
        kept = batch.mean(is_kept.astype(jnp.float32), (1, 2), context.is_live)
        metrics = {**out, "tokens_kept": kept}
        return x, Aux(losses, metrics, is_kept.sum(0), state, report)

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of a model that stops after `num_recursions`.

        Raises:
          ValueError: if there are more recursions than capacities.
        """
        if num_recursions > self.num_recursions:
            raise ValueError(
                f"depth {num_recursions}: expert_choice has capacities and routers for "
                f"{self.num_recursions} recursions; take at most {self.num_recursions}"
            )
        return dataclasses.replace(
            self, num_recursions=num_recursions, capacity=self.capacity[:num_recursions]
        )

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step: without warm-up once it is over."""
        if step < self.capacity_warmup_steps:
            return self
        return dataclasses.replace(self, capacity_warmup_steps=0)

    def is_causal(self, mode: Mode) -> bool:
        """Returns whether no token looks ahead: in causal mode, or where all tokens are kept."""
        return mode == "causal" or all(capacity == 1 for capacity in self.capacity)

    def cache_places(self, schedule: Schedule, recursion: int, num_tokens: int) -> int:
        """Returns the capacity of the recursion, or of the one before where it shows all active."""
        kept = (num_tokens, *counts(self, num_tokens))
        return kept[recursion if schedule.is_source(recursion) else recursion + 1]

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns what each recursion processes in the modes that keep the best tokens."""
        kept = counts(self, seq_len)
        scored = (seq_len, *kept[:-1])
        source = schedule.is_source
        queries = [s if source(r) else k for r, (k, s) in enumerate(zip(kept, scored, strict=True))]
        return [Pass(r, q, scored=s) for r, (q, s) in enumerate(zip(queries, scored, strict=True))]

    def score_flops(self, embed_dim: int) -> int:
        """Returns the forward FLOPs of scoring one token in one recursion."""
        routers = 1 if self.sampling == "aux_loss" else 2
        return routers * routing.flops(self.router, embed_dim)


def _router_entries(schedule: Schedule) -> tuple[int, ...]:
    return tuple(schedule.by_recursion("router")[:, 0].tolist())


def counts(config: ExpertChoice, seq_len: int) -> tuple[int, ...]:
    """Returns how many tokens of a sequence each recursion keeps."""
    return places.counts(config.capacity, config.parts, seq_len)


def _logits(weights: dict[str, Any], x: Array, config: ExpertChoice) -> tuple[Array, Array]:
    """Returns by which tokens are chosen and gated, and by which each decides in causal mode."""
    logits = routing.logits(weights["router"], x / config.temperature)
    if config.sampling == "aux_loss":
        return logits, logits
    # As released: it is not divided by the temperature.
    return logits, routing.logits(weights["aux_router"], jax.lax.stop_gradient(x))


def _gathered(stack: Stack, routers: Any, x: Array, context: Context, config: ExpertChoice):
    """Processes only the tokens that each recursion keeps."""
    everyone, live = counts(config, x.shape[1]), context.is_live
    limits = None if live is None else places.limits(config.capacity, config.parts, live)
    carry, kept, outs = (x, None, live), (), []
    for count, same in itertools.groupby(range(len(everyone)), key=lambda r: everyone[r]):
        first, *rest = same
        step = functools.partial(_keep_best, context, config, count)
        # The first changes the shape of the carry; the others keep what they get.
        for recursions in (range(first, first + 1), range(first + 1, first + 1 + len(rest))):
            if recursions:
                carry, *out, kept = stack.loop(step, carry, (routers, limits), recursions, kept)
                outs.append(out)
    out, report = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outs)
    return carry[0], out, report


def _keep_best(
    context: Context,
    config: ExpertChoice,
    count: int,
    carry: _Carry,
    recursion: Recursion,
    entry: tuple[Any, Int[Array, "B P"] | None],
) -> tuple[_Carry, dict[str, Array], Made]:
    """One recursion over the best `count` of the active tokens.

    Where rows have padding, `limit` tokens of each part of a row are really kept: the others fill
    the shape, no token sees them, and they leave their states as they are.
    """
    (x, active, live), (weights, limit) = carry, entry
    rows = jnp.arange(x.shape[0])[:, None]
    h = take(x, active, config.parts)
    logits, predicted = _logits(weights, h, config)
    gate = routing.gate(logits, config.score, config.alpha)
    scores = gate if live is None else jnp.where(live, gate, -jnp.inf)
    chosen = None if count == h.shape[1] else select(scores, count, config.parts)
    kept = active if chosen is None else chosen if active is None else pick(active, chosen)
    goes = None if live is None else pick(live, chosen)
    if goes is not None:
        goes &= places.is_best(pick(scores, chosen), limit)
    where = lambda index: context if index is None else context.take(index)
    if recursion.is_source:
        # It makes keys and values of every token that a later query may meet.
        there = where(active) if live is None else where(active).hide(~live)
        y, made = recursion.run(recursion.enter(h, there), there)
        y = take(y, chosen, config.parts)
    else:
        there = where(kept) if goes is None else where(kept).hide(~goes)
        y = recursion.enter(take(h, chosen, config.parts), there)
        y, made = recursion.run(y, there)
    x = put(x, kept, y, pick(gate, chosen), config.gating, config.parts, goes)

    def marked(shape: tuple[int, ...], index: Array | None) -> Array:
        is_in = jnp.ones(y.shape[:2], bool) if goes is None else goes
        return is_in if index is None else jnp.zeros(shape, bool).at[rows, index].set(is_in)

    is_chosen, is_kept = marked(logits.shape, chosen), marked(x.shape[:2], kept)
    among = jnp.ones(logits.shape, bool) if live is None else live
    out = statistics(logits, predicted, is_chosen, among, config.score, config.alpha)
    return (x, kept, goes), {**out, "state": x, "is_kept": is_kept}, made


def _masked(
    stack: Stack, routers: Any, x: Array, context: Context, config: ExpertChoice, time: Any
):
    """Processes every token and keeps the result for some: for numbers of them not known ahead.

    With `time`, those of a capacity warming up; without, those above their router's threshold. A
    recursion whose capacity does not fall has nothing to decide: all its active tokens go on.
    """
    before = (1.0, *config.capacity[:-1])
    everyone = jnp.ones(x.shape[:2], bool) if context.is_live is None else context.is_live
    kept = config.capacity, config.parts
    entries = {
        "routers": routers,
        "is_open": jnp.array([a <= b for a, b in zip(before, config.capacity, strict=True)]),
        "limit": places.limits(*kept, everyone)
        if time is None
        else places.warming(*kept, config.capacity_warmup_steps, everyone, time),
    }

    def step(carry, recursion: Recursion, entry: dict[str, Array]):
        x, active = carry
        logits, predicted = _logits(entry["routers"], x, config)
        gate = routing.gate(logits, config.score, config.alpha)
        if time is None:
            chosen = active & (entry["is_open"] | routing.is_above(predicted))
        else:
            chosen = active & places.is_best(jnp.where(active, gate, -jnp.inf), entry["limit"])
        visible = recursion.only(context, chosen, active)
        y, made = recursion.run(recursion.enter(x, visible), visible)
        y = routing.update(x, y, gate, config.gating)
        out = statistics(logits, predicted, chosen, active, config.score, config.alpha)
        x = jnp.where(chosen[..., None], y, x)
        return (x, chosen), {**out, "state": x, "is_kept": chosen}, made

    (x, _), out, report, _ = stack.loop(step, (x, everyone), entries)
    return x, out, report
