"""What to change about a run that does not fit, with what each change is predicted to leave."""

import math
from typing import Any

from recursia import batch
from recursia.errors import UserError
from recursia.preflight import predict, program
from recursia.train.step import Trainer

Advice = dict[str, Any]


def smaller(made: Trainer, needed: int, available: int) -> list[Advice]:
    """Returns changes that need less, those that are predicted to fit first.

    Args:
      made: the trainer that does not fit.
      needed: bytes per device, as the compiler says; predictions are changes of it.
      available: bytes per device.

    Returns:
      Of each change, `overrides` as typed, `bytes_per_chip` as predicted, and whether it `fits`.
    """
    base = predict.bytes_per_chip(made)
    found = []
    for changes in (_more_parts(made), _remat(made), _more_fsdp(made)):
        for change in changes:
            run = predict.change(made.run, **change)
            try:
                other = program.trainer(run, list(made.mesh.devices.flat))
            except UserError:
                continue
            least = needed + predict.bytes_per_chip(other) - base
            if least >= needed:
                continue
            typed = predict.overrides(made.run, run)
            fits = least <= available
            found.append({"overrides": typed, "bytes_per_chip": least, "fits": fits})
            if fits:
                break
    return sorted(found, key=lambda each: (not each["fits"], each["bytes_per_chip"]))


def _more_parts(made: Trainer) -> list[dict[str, Any]]:
    """Numbers of microbatches by powers of two, down to one row for each device."""
    count, rows = made.run.train.num_microbatches, made.run.train.batch_size
    ways = math.prod(made.mesh.shape[axis] for axis in batch.AXES)
    most = rows // count // ways
    return [{"train__num_microbatches": count << i} for i in range(1, most.bit_length())]


def _remat(made: Trainer) -> list[dict[str, Any]]:
    later = predict.REMATS[predict.REMATS.index(made.run.train.remat) + 1 :]
    return [{"train__remat": name} for name in later]


def _more_fsdp(made: Trainer) -> list[dict[str, Any]]:
    shape = made.mesh.shape
    return [{"mesh__data": 1, "mesh__fsdp": -1}] if shape["data"] > 1 else []
