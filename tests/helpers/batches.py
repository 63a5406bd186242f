"""Batches in which each row is one document."""

import numpy as np


def whole_rows(tokens, weights):
    """Returns a batch of ids [B T+1] whose predictions have weights [B T]."""
    batch, length = tokens.shape[0], tokens.shape[1] - 1
    along = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)).copy()
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": along,
        "segment_ids": np.ones_like(along),
        "weights": weights,
    }


def nats(logits, targets):
    """Returns each target's cross-entropy, in float64."""
    logits = np.asarray(logits, np.float64)
    logsum = np.log(np.exp(logits).sum(-1))
    return logsum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
