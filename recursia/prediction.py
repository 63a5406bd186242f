"""What a model makes of texts: logits, the states after each recursion, and how it routes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from recursia import model
from recursia.architecture import Model
from recursia.depth.policy import Mode
from recursia.errors import ConfigError
from recursia.evaluate.shapes import Place, allowed


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """A model's predictions for a batch of texts, as NumPy arrays.

    A text shorter than the longest ends in padding, where `tokens` and `nats` are 0 and the other
    arrays are undefined.

    Attributes:
      tokens: ids of the texts.
      is_token: False in padding.
      logits: of the token after each, float32.
      nats: cross-entropy of the token after each; 0 for the last, which none follows.
      states: hidden states after each recursion, float32; None where sharing "sequence" walks block
        by block.
      depth_used: number of recursions that each token takes: the first ones.
      scores: what the depth policy decided by; see `Aux.scores`.
      metrics: of the depth policy and the blocks, over all tokens, by name; scalars, or arrays with
        one entry per recursion.
      losses: terms of the training loss besides the cross-entropy, in nats per token, times their
        weights.
      num_recursions: most recursions of a token.

    Example:
      >>> import recursia
      >>> found = recursia.preset("mor:tiny")(["It was a", "They"])
      >>> found.states.shape, found.is_token.sum(axis=1).tolist()
      ((3, 2, 8, 64), [8, 4])
      >>> bool((found.is_taken.sum(axis=0) == found.depth_used * found.is_token).all())
      True
    """

    tokens: Int[np.ndarray, "B T"]
    is_token: Bool[np.ndarray, "B T"]
    logits: Float[np.ndarray, "B T V"]
    nats: Float[np.ndarray, "B T"]
    states: Float[np.ndarray, "R B T D"] | None
    depth_used: Int[np.ndarray, "B T"]
    scores: Float[np.ndarray, "R B T"] | None
    metrics: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    num_recursions: int

    @property
    def is_taken(self) -> Bool[np.ndarray, "R B T"]:
        """Whether each token takes each recursion; False in padding."""
        numbers = np.arange(self.num_recursions)[:, None, None]
        return (numbers < self.depth_used) & self.is_token

    @property
    def mean_depth(self) -> float:
        """Recursions per token."""
        return float(self.is_taken.sum() / self.is_token.sum())

    def __repr__(self) -> str:
        texts, length = self.tokens.shape
        return (
            f"Prediction({texts} x {length} tokens, {self.mean_depth:.3f} of {self.num_recursions} "
            f"recursions per token)"
        )


def predict(
    params: model.Params, config: Model, texts: Sequence[Sequence[int]], place: Place
) -> Prediction:
    """Returns the predictions of a model for a batch of texts.

    Args:
      params: float32 parameters.
      config: the model.
      texts: ids, at least one and at most `place.context_length` of each.
      place: where, and in which mode.
    """
    found = _run(_predicted, params, config, texts, place)
    count, length = len(texts), max(map(len, texts))
    by_token = lambda name: found[name][:count, :length]
    by_recursion = lambda name: None if found[name] is None else found[name][:, :count, :length]
    return Prediction(
        **{name: by_token(name) for name in ("tokens", "is_token", "logits", "nats", "depth_used")},
        **{name: by_recursion(name) for name in ("states", "scores")},
        **{name: found[name] for name in ("metrics", "losses")},
        num_recursions=config.schedule.num_recursions,
    )


def lens(
    params: model.Params, config: Model, texts: Sequence[Sequence[int]], place: Place
) -> Float[np.ndarray, "R B T V"]:
    """Returns the logits of the states after each recursion, as if each were the last.

    Args:
      params: float32 parameters.
      config: the model.
      texts: as for `predict`.
      place: where, and in which mode.

    Raises:
      ConfigError: for a model without such states.
    """
    if config.schedule.order == "sequence":
        raise ConfigError(
            "lens: sharing 'sequence' walks block by block, and has no state after a recursion"
        )
    if config.schedule.is_cyclic:
        raise ConfigError(
            "lens: steps read the keys of later ones and run several times, and there is no state "
            "after a recursion"
        )
    found = _run(_read, params, config, texts, place)["logits"]
    return found[:, : len(texts), : max(map(len, texts))]


def _run(
    f: Callable[..., dict[str, Any]],
    params: model.Params,
    config: Model,
    texts: Sequence[Sequence[int]],
    place: Place,
) -> dict[str, Any]:
    """Returns what a function makes of texts, as rows that are padded to one of a few lengths."""
    length = allowed(config, max(map(len, texts)), place.context_length)
    rows = -(-len(texts) // place.mesh.size) * place.mesh.size
    arrays = {"tokens": np.zeros((rows, length), np.int32), "lengths": np.zeros(rows, np.int32)}
    for at, text in enumerate(texts):
        arrays["tokens"][at, : len(text)], arrays["lengths"][at] = text, len(text)
    with jax.set_mesh(place.mesh):
        return jax.device_get(_compiled(f, config, place)(params, place.put(arrays)))


@functools.lru_cache(maxsize=32)
def _compiled(f: Callable[..., dict[str, Any]], config: Model, place: Place):
    everywhere = NamedSharding(place.mesh, PartitionSpec())
    # A model that computes alike in both modes gives its states in mode "eval" only.
    mode = place.mode if "causal" in config.modes else "eval"
    run = lambda params, rows: f(params, rows["tokens"], rows["lengths"], config, mode)
    return jax.jit(run, in_shardings=(None, place.by_rows), out_shardings=everywhere)


def _predicted(
    params: model.Params, tokens: Array, lengths: Array, config: Model, mode: Mode
) -> dict[str, Any]:
    is_token = jnp.arange(tokens.shape[1]) < lengths[:, None]
    segments = is_token.astype(jnp.int32)
    out = model.apply(params, tokens, config, segment_ids=segments, mode=mode)
    logits, aux = model.logits(params, out.hidden, config), out.aux
    chosen = jnp.take_along_axis(logits, jnp.roll(tokens, -1, axis=1)[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return {
        "tokens": tokens,
        "is_token": is_token,
        "logits": logits,
        "nats": jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None] - 1, nats, 0.0),
        "states": None if aux.states is None else aux.states.astype(jnp.float32),
        "depth_used": aux.depth_used,
        "scores": aux.scores,
        "metrics": aux.metrics,
        "losses": aux.losses,
    }


def _read(
    params: model.Params, tokens: Array, lengths: Array, config: Model, mode: Mode
) -> dict[str, Any]:
    segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
    out = model.apply(params, tokens, config, segment_ids=segments, mode=mode)
    read = lambda state: model.read(params, state, config, segment_ids=segments)
    logits = lambda state: model.logits(params, read(state), config)
    return {"logits": jax.lax.map(logits, out.aux.states)}
