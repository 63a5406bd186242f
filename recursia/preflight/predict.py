"""Memory of a run before anything is compiled: what to try first, and what to advise."""

import dataclasses
from typing import Any

from recursia import activations, settings, sharding
from recursia.preflight import program
from recursia.train.step import Trainer

REMATS = ("none", "block", "recursion")
# A TPU's compiler pads to tiles, puts weights' gradients off and leaves holes. It needs so many
# times what a trace counts that rows of a batch do not change, and so many times what they add: a
# fit of its reports of eleven steps, nine of which it meets within 15 %.
TPU_SHARES = 1.25, 2.0


def bytes_per_chip(made: Trainer) -> int:
    """Returns the bytes that a training step is predicted to need per device."""
    return held_bytes(made) + temporary_bytes(made)


def held_bytes(made: Trainer) -> int:
    """Returns the bytes of the state and the batch on one device."""
    return program.local_bytes(made.abstract()) + program.local_bytes(made.abstract_batch())


def temporary_bytes(made: Trainer) -> int:
    """Returns what the compiler should report, from the trace of a step.

    Tests hold it to be within 15 % for some presets. Arrays of a trace are a device's own, but that
    the compiler splits sequences over context, of which a part is traced here, and over tensor, by
    which everything is taken to be split.
    """
    return sum(temporary_parts(made))


def temporary_parts(made: Trainer) -> tuple[int, int]:
    """Returns the part of `temporary_bytes` that its rows do not change, and theirs."""
    once, twice = _counted(made, 1), _counted(made, 2)
    parts = (2 * once - twice, twice - once)
    shares = TPU_SHARES if _platform(made) == "tpu" else (1, 1)
    return tuple(int(share * part) for share, part in zip(shares, parts, strict=True))


def _platform(made: Trainer) -> str:
    return "tpu" if made.mesh.devices.flat[0].platform == "tpu" else "cuda"


def _counted(made: Trainer, times: int) -> int:
    """Returns what the trace of a step counts, with so many times its rows."""
    train = made.run.train
    rows, length = times * train.batch_size, train.seq_len // made.mesh.shape["context"]
    run = change(made.run, train__batch_size=rows, train__seq_len=length)
    traced = dataclasses.replace(made, run=run).trace(train.num_steps - 1)
    return activations.peak_bytes(traced.jaxpr, _platform(made)) // made.mesh.shape["tensor"]


def change(run: settings.Run, **values: Any) -> settings.Run:
    """Returns a run with fields of its sections changed, such as `train__num_microbatches=2`."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.partition("__")
        sections.setdefault(section, {})[field] = value
    for section, fields in sections.items():
        changed = dataclasses.replace(getattr(run, section), **fields)
        run = dataclasses.replace(run, **{section: changed})
    return run


def overrides(run: settings.Run, changed: settings.Run) -> str:
    """Returns what to type to get from one run to the other."""
    names = {
        "mesh": sharding.AXES,
        "train": ("batch_size", "num_microbatches", "remat"),
    }
    typed = []
    for section, fields in names.items():
        ours, theirs = getattr(run, section), getattr(changed, section)
        typed += [
            f"--config.{section}.{field}={getattr(theirs, field)}"
            for field in fields
            if getattr(ours, field) != getattr(theirs, field)
        ]
    return " ".join(typed)
