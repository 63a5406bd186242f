"""Expert choice of Mixture-of-Recursions: each recursion keeps the top-k tokens by router score.

Bae et al. 2025, arXiv 2507.10524. Recursion r keeps the `int(capacity[r] * T)` highest scores among
the tokens that recursion r-1 kept, in a row with T tokens besides padding. Shapes shrink with
capacity, so recursions are unrolled where it falls and scanned where it does not. The top-k reads
the scores of later tokens: training and the paper's evaluation are not causal. In causal mode a
token goes on if its own logit is at least 0: the router's, which the auxiliary loss trains for
this, or an auxiliary router's.
"""

import dataclasses
import functools
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from recursia import batch, ranges
from recursia import params as parameters
from recursia.depth import alone, routing
from recursia.depth import capacity as capacities
from recursia.depth.policy import Aux, Call, Mode, Pass, Policy, Result
from recursia.depth.routing import statistics
from recursia.depth.subset import pick, put, select, spread, take
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.params import Params, at
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

_Carry = tuple[Array, Array | None, Array | None]  # states, indices of active tokens, is_live
_Output = tuple[States, dict[str, Array], Report]  # states, statistics by recursion, reports
AUX_LR_SCALE = 10.0  # factor of the auxiliary router's learning rate, as released


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Policy):
    """Expert choice: a top-k over tokens in each recursion.

    Attributes:
      capacity: fraction of all tokens that each recursion keeps, never growing; None takes
        (R - r) / R for r = 0 .. R-1.
      alpha: largest gate.
      score: function of the logits that gives the gate.
      gating: how the gate enters a token's state.
      router: "linear", or "mlp" with one hidden layer.
      temperature: divides the router's input.
      sampling: the router that decides in causal mode. "aux_loss": the router itself; "aux_router":
        a second router, which reads the same states at ten times the learning rate, and through
        which no gradient reaches the rest of the model.
      aux_loss_weight: of the cross-entropy between the logit that decides in causal mode and
        whether its token was kept, summed over recursions.
      z_loss_weight: of the mean squared logit, summed over recursions.
      parts: equal parts of a sequence, each of which keeps the same number of its tokens. With a
        multiple of `mesh.context`, routing needs no communication; 1 compares the scores of the
        whole sequence, which needs an all-gather.
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
        object.__setattr__(self, "capacity", self.shares)
        capacities.check(self.shares, self.num_recursions)
        weights = ("aux_loss_weight", "z_loss_weight")
        ranges.at_least(0, self, "alpha", "capacity_warmup_steps", *weights)
        ranges.at_least(1, self, "parts")
        ranges.above(0, self, "temperature")

    @property
    def shares(self) -> capacities.Shares:
        """`capacity`, or its default."""
        default = capacities.linear(self.num_recursions)
        return default if self.capacity is None else self.capacity

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the routers' banks, with the entries of slot "router" in the schedule."""
        num_entries = 1 + max(_router_entries(schedule))
        bank = lambda lr_scale: parameters.stack(
            routing.specs(self.router, embed_dim, lr_scale=lr_scale), (num_entries,), (None,)
        )
        if self.sampling == "aux_loss":
            return {"router": bank(1.0)}
        return {"router": bank(1.0), "aux_router": bank(AUX_LR_SCALE)}

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses order "sequence", and routers that vary within a recursion."""
        super().check(schedule, coda, inject)
        if any(len(set(row)) > 1 for row in schedule.by_recursion("router").tolist()):
            raise ValueError(
                "varies.router: a recursion has one router; let it vary by 'recursion'"
            )

    def check_length(self, seq_len: int) -> None:
        """Refuses lengths that are no multiple of `parts`."""
        if seq_len % self.parts:
            raise ValueError(
                f"model.depth.parts: {self.parts} do not divide the {seq_len} tokens of "
                "train.seq_len; change one of them"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after routing: by top-k, or in causal mode each token alone.

        Its `Aux.scores` are the logits by which the tokens of each recursion are chosen.
        """
        routers = at(params, np.array(_router_entries(stack.schedule)))
        is_warming = call.mode == "train" and self.capacity_warmup_steps > 0
        if is_warming and call.step is None:
            raise ValueError(
                "step: None; expert_choice with capacity_warmup_steps trains at a step"
            )
        if call.mode == "causal" and call.wanted is not None:
            return self._alone(stack, routers, x, context, call)
        if call.mode == "causal" or is_warming:
            step = call.step if is_warming else None
            x, out, report = _masked(stack, routers, x, context, self, step)
        else:
            is_read = call.mode != "train"
            x, out, report = _gathered(stack, routers, x, context, self, is_read)
        losses = {"router": self.aux_loss_weight * out["router_cross_entropy"].sum()}
        if self.z_loss_weight:
            losses["router_z"] = self.z_loss_weight * out["router_z"].sum()
        state, is_kept, scores = out.pop("state"), out.pop("is_kept"), out.pop("scores", None)
        kept = batch.mean(is_kept.astype(jnp.float32), (1, 2), context.is_live)
        metrics = {**out, "tokens_kept": kept}
        return x, Aux(losses, metrics, is_kept.sum(0), state, report, scores=scores)

    def _alone(
        self, stack: Stack, routers: Params, x: States, context: Context, call: Call
    ) -> Result:
        def decide(x: Array, entry: tuple[Params, Array]) -> tuple[Array, Array]:
            weights, is_open = entry
            logits, predicted = _logits(weights, x, self)
            gate = routing.gate(logits, self.score, self.alpha)
            return is_open | routing.is_above(predicted), gate

        update = lambda x, y, gate: routing.update(x, y, gate, self.gating)
        return alone.run(stack, x, context, call, (routers, self._is_open()), decide, update)

    def _is_open(self) -> Array:
        """Returns for each recursion whether all active tokens take it."""
        return jnp.array([a <= b for a, b in itertools.pairwise((1.0, *self.shares))])

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy of fewer recursions; refuses more than there are capacities."""
        if num_recursions > self.num_recursions:
            raise ValueError(
                f"depth {num_recursions}: expert_choice has capacities and routers for "
                f"{self.num_recursions} recursions; take at most {self.num_recursions}"
            )
        return dataclasses.replace(
            self, num_recursions=num_recursions, capacity=self.shares[:num_recursions]
        )

    def at_step(self, step: int) -> "Policy":
        """Returns the policy of a training step: without warm-up once it is over."""
        if step < self.capacity_warmup_steps:
            return self
        return dataclasses.replace(self, capacity_warmup_steps=0)

    def is_causal(self, mode: Mode) -> bool:
        """Returns whether no token reads later scores: in causal mode, or if all are kept."""
        return mode == "causal" or all(share == 1 for share in self.shares)

    def cache_places(self, schedule: Schedule, recursion: int, num_tokens: int) -> int:
        """Returns the capacity of the recursion, or of the one before where it shows all active."""
        kept = (num_tokens, *counts(self, num_tokens))
        return kept[recursion if schedule.is_source(recursion) else recursion + 1]

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns the passes of the top-k modes."""
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
    return capacities.counts(config.shares, config.parts, seq_len)


def _logits(weights: Params, x: Array, config: ExpertChoice) -> tuple[Array, Array]:
    """Returns the logits of the top-k and gate, and those that decide in causal mode."""
    logits = routing.logits(weights["router"], x / config.temperature)
    if config.sampling == "aux_loss":
        return logits, logits
    # As released, the temperature does not apply.
    return logits, routing.logits(weights["aux_router"], jax.lax.stop_gradient(x))


def _gathered(
    stack: Stack,
    routers: Params,
    x: States,
    context: Context,
    config: ExpertChoice,
    is_read: bool,
) -> _Output:
    """Processes in each recursion only the tokens that it keeps."""
    kept, live = counts(config, x.shape[1]), context.is_live
    limits = None if live is None else capacities.limits(config.shares, config.parts, live)
    carry, keys_values, outs = (x, None, live), (), []
    for count, group in itertools.groupby(range(len(kept)), key=lambda r: kept[r]):
        first, *others = group
        step = functools.partial(_keep_best, context, config, count, is_read)
        # The first of a group changes the shape of the carry; the others do not, and are scanned.
        for recursions in (range(first, first + 1), range(first + 1, first + 1 + len(others))):
            if recursions:
                carry, *out, keys_values = stack.loop(
                    step, carry, (routers, limits), recursions, keys_values
                )
                outs.append(out)
    out, report = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outs)
    return carry[0], out, report


def _keep_best(
    context: Context,
    config: ExpertChoice,
    count: int,
    is_read: bool,
    carry: _Carry,
    recursion: Recursion,
    entry: tuple[Params, Int[Array, "B P"] | None],
) -> tuple[_Carry, dict[str, Array], RecursionOutput]:
    """One recursion over the top `count` of the active tokens.

    In rows with padding only `limit` tokens of each part go on: the others keep the shape static,
    no token attends to them, and their states do not change.
    """
    (x, active, live), (weights, limit) = carry, entry
    h = take(x, active, config.parts)
    logits, predicted = _logits(weights, h, config)
    gate = routing.gate(logits, config.score, config.alpha)
    scores = gate if live is None else jnp.where(live, gate, -jnp.inf)
    chosen = None if count == h.shape[1] else select(scores, count, config.parts)
    kept = active if chosen is None else chosen if active is None else pick(active, chosen)
    going = None
    if live is not None and limit is not None:
        going = pick(live, chosen) & capacities.is_best(pick(scores, chosen), limit)
    subset = lambda index: context if index is None else context.take(index)
    if recursion.is_source:
        # It makes keys and values of every token that a later query may attend to.
        visible = subset(active) if live is None else subset(active).hide(~live)
        y, made = recursion.run(recursion.enter(h, visible), visible)
        y = take(y, chosen, config.parts)
    else:
        visible = subset(kept) if going is None else subset(kept).hide(~going)
        y = recursion.enter(take(h, chosen, config.parts), visible)
        y, made = recursion.run(y, visible)
    x = put(x, kept, y, pick(gate, chosen), config.gating, config.parts, going)

    goes_on = jnp.ones(y.shape[:2], bool) if going is None else going
    is_chosen = spread(goes_on, chosen, jnp.zeros(logits.shape, bool))
    is_kept = spread(goes_on, kept, jnp.zeros(x.shape[:2], bool))
    is_active = jnp.ones(logits.shape, bool) if live is None else live
    out = statistics(logits, predicted, is_chosen, is_active, config.score, config.alpha)
    if is_read:
        scores = jnp.where(is_active, logits, jnp.nan)
        out["scores"] = spread(scores, active, jnp.full(x.shape[:2], jnp.nan))
    return (x, kept, going), {**out, "state": x, "is_kept": is_kept}, made


def _masked(
    stack: Stack,
    routers: Params,
    x: States,
    context: Context,
    config: ExpertChoice,
    warmup_step: Int[Array, ""] | None,
) -> _Output:
    """Processes every token and discards the results of some, where their number is dynamic.

    At a warm-up step the top-k go on; with None, the tokens that decide so by their own logit. All
    active tokens go on in a recursion whose capacity does not fall.
    """
    shares, parts = config.shares, config.parts
    live = jnp.ones(x.shape[:2], bool) if context.is_live is None else context.is_live
    is_open = config._is_open()
    if warmup_step is None:
        limits = capacities.limits(shares, parts, live)
    else:
        num_steps = config.capacity_warmup_steps
        limits = capacities.warmup_limits(shares, parts, num_steps, live, warmup_step)

    def step(
        carry: tuple[Array, Array], recursion: Recursion, entry: tuple[Params, Array, Array]
    ) -> tuple[tuple[Array, Array], dict[str, Array], RecursionOutput]:
        (x, active), (weights, is_open, limit) = carry, entry
        logits, predicted = _logits(weights, x, config)
        gate = routing.gate(logits, config.score, config.alpha)
        if warmup_step is None:
            chosen = active & (is_open | routing.is_above(predicted))
        else:
            chosen = active & capacities.is_best(jnp.where(active, gate, -jnp.inf), limit)
        visible = recursion.only(context, chosen, active)
        y, made = recursion.run(recursion.enter(x, visible), visible)
        y = routing.update(x, y, gate, config.gating)
        out = statistics(logits, predicted, chosen, active, config.score, config.alpha)
        if warmup_step is None:
            out["scores"] = jnp.where(active, predicted, jnp.nan)
        x = jnp.where(chosen[..., None], y, x)
        return (x, chosen), {**out, "state": x, "is_kept": chosen}, made

    (x, _), out, report, _ = stack.loop(step, (x, live), (routers, is_open, limits))
    return x, out, report
