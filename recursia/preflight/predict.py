"""Memory of a run before anything is compiled: what to try first, and what to advise."""

import dataclasses
from typing import Any

from recursia import activations, settings, sharding
from recursia.preflight import program
from recursia.train.step import Trainer

REMATS = ("none", "block", "recursion")
# A TPU's compiler pads what kernels read to tiles, puts weights' gradients off and leaves holes: of
# the presets that tests compile it reports 1.8 to 2.3 times what a trace counts.
TPU_SHARE = 2


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
    length = made.run.train.seq_len // made.mesh.shape["context"]
    own = dataclasses.replace(made, run=change(made.run, train__seq_len=length))
    traced = own.trace(made.run.train.num_steps - 1)
    is_tpu = made.mesh.devices.flat[0].platform == "tpu"
    counted = activations.peak_bytes(traced.jaxpr, fuses_into_products=is_tpu)
    counted //= made.mesh.shape["tensor"]
    return TPU_SHARE * counted if is_tpu else counted


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
        "train": ("batch_size", "num_microbatches"),
        "model": ("remat",),
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
