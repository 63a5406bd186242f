"""The training loss: cross-entropy, distillation, early exits and auxiliary losses."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import batch as whole_batch
from recursia import losses, model, settings
from recursia.architecture import Model
from recursia.params import Params
from recursia.train import distill

Batch = dict[str, Array]  # tokens, targets, positions, segment_ids, weights: each [B T]


def loss_fn(
    run: settings.Run,
    config: Model,
    weights: Params,
    batch: Batch,
    total: Float[Array, ""],
    step: Int[Array, ""],
    microbatch: int | Int[Array, ""],
    teacher: distill.Teacher | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns one device's share of the loss of a microbatch, and its share of every metric.

    The shares of all microbatches and devices sum to the loss and the metrics of the batch.

    Args:
      run: the settings.
      config: the model at this training step.
      weights: its float32 parameters, gathered or as shards.
      batch: this device's rows of the microbatch.
      total: sum of the token weights of the whole batch.
      step: of training.
      microbatch: index of the microbatch within the step. Terms that are not sums over tokens are
        averaged over all microbatches and devices.
      teacher: the model to distil from, if any.
    """
    trains = run.optimizer.trains(weights)
    weights = jax.tree.map(lambda w, yes: w if yes else jax.lax.stop_gradient(w), weights, trains)
    num_shares = run.train.num_microbatches * whole_batch.num_shards()
    key = jax.random.fold_in(jax.random.key(run.train.seed), zlib.crc32(b"forward"))
    # With one segment per row, positions are omitted so that the plain causal kernel applies.
    where: Any = {name: batch[name] for name in ("positions", "segment_ids")}
    out = model.apply(
        weights,
        batch["tokens"],
        config,
        **({} if run.data.cross_document_attention else where),
        mode="train",
        step=step,
        key=jax.random.fold_in(key, step),
        microbatch=microbatch,
        keeps_states=bool(teacher and teacher.layers),
        remat=run.train.rematerialisation,
    )
    taught = None if teacher is None else teacher.read(batch)
    predicted, nats, exits = _prediction_losses(run, config, weights, batch, out, taught)
    extra = {f"loss_{name}": value / num_shares for name, value in out.aux.losses.items()}
    extra |= {f"loss_{name}": value / total for name, value in exits.items()}
    if taught and taught.states is not None:
        assert out.states is not None
        ours = out.states[-len(taught.states) :]
        apart = distill.state_distance(ours, taught.states, batch["weights"]) / total
        extra["loss_layers"] = run.distill.layer_weight * apart
    metrics = {
        "loss": (batch["weights"] * nats).sum() / total,
        "mean_depth": (out.aux.depth_used * batch["weights"]).sum() / total,
        **extra,
        **{name: value / num_shares for name, value in out.aux.metrics.items()},
    }
    return predicted / total + sum(extra.values()), metrics


def _prediction_losses(
    run: settings.Run,
    config: Model,
    weights: Params,
    batch: Batch,
    out: model.Output,
    taught: distill.Lesson | None,
) -> tuple[Float[Array, ""], Float[Array, "B T"], dict[str, Array]]:
    """Returns the prediction loss, each token's cross-entropy at full depth, and the exit losses.

    The prediction loss and the exit losses are sums over tokens, in nats.
    """
    aux, targets = out.aux, batch["targets"]
    head, chunk = config.embed.head(weights["embed"]), run.train.loss_chunk
    how, predicted = run.distill, None if taught is None else taught.predictions

    def score(hidden: Array, share: Array, teacher: distill.TeacherOutput | None):
        if teacher is None or not how.weight:
            return losses.cross_entropy(hidden, head, targets, share, chunk)
        kept, share = (1 - how.weight) * share, how.weight * share
        loss, nats = losses.cross_entropy(hidden, head, targets, kept, chunk)
        heat = how.temperature
        apart = distill.distance(how.kind, hidden, head, teacher, share, chunk, heat)[0]
        return loss + apart, nats

    if aux.exit_weights is None or aux.states is None:
        return *score(out.hidden, batch["weights"], predicted), {}
    shares = aux.exit_weights * batch["weights"]
    last, nats = score(out.hidden, shares[-1], predicted)
    inner = jax.lax.stop_gradient((out.hidden, head)) if how.exits else None
    at_exit = lambda exit: score(model.read(weights, exit[0], config), exit[1], inner)
    earlier, earlier_nats = jax.lax.map(at_exit, (aux.states[:-1], shares[:-1]))
    if aux.exits is None:
        return last + earlier.sum(), nats, {}
    nats_by_exit = jax.lax.stop_gradient(jnp.concatenate([earlier_nats, nats[None]]))
    stopping = config.depth.stopping_loss(aux.exits, nats_by_exit)
    return last + earlier.sum(), nats, {"exits": (batch["weights"] * stopping).sum()}
