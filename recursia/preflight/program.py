"""The real training step, and the decoding one, compiled for machines that are not here."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from recursia import budget, settings, sharding
from recursia.errors import UserError
from recursia.generate import decode
from recursia.preflight import hlo
from recursia.train.step import Trainer

_EXHAUSTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Refused(UserError):
    """A program that the compiler fails on, for another reason than memory."""

    exit_code = 1


class TooLarge(UserError):
    """The compiler finds no memory for a program.

    Attributes:
      needed: bytes per device, arguments included.
    """

    exit_code = 1

    def __init__(self, needed: int):
        super().__init__(f"the program needs {needed} bytes per device")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      parameters: float32, as they lie.
      optimizer: its state.
      arguments: all else that a step is given.
      temporaries: what is made and dropped within a step, gradients and activations foremost.
      output: of the results, those that do not take an argument's place.
      code: of the program.
    """

    parameters: int
    optimizer: int
    arguments: int
    temporaries: int
    output: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step: its text, what it needs, and the seconds that compiling took."""

    program: hlo.Program
    memory: Memory
    seconds: float


def trainer(run: settings.Run, devices: Sequence[Any]) -> Trainer:
    """Returns the trainer of a run on the given devices.

    Raises:
      ConfigError: for a mesh that does not make so many, or a batch that does not divide.
      DataError: if the vocabulary is to be read from data that cannot be read.
    """
    mesh = sharding.make_mesh(run.mesh, list(devices))
    rows = run.train.batch_size // run.train.num_microbatches
    sharding.check_batch(rows, run.train.seq_len, mesh)
    made = Trainer(run, run.model.sized(budget.vocab_size(run)), mesh)
    _ = made.state_shardings  # widths that do not divide
    return made


def train_step(made: Trainer, step: int) -> Compiled:
    """Compiles a training step.

    Raises:
      TooLarge: if the compiler finds no memory for it.
    """
    start = time.monotonic()
    compiled = _compile(made.lower(step), made.mesh.devices.flat[0])
    state = made.abstract()
    held = (local_bytes(state.params), local_bytes(state.opt_state))
    return _measured(compiled, start, *held)


def decode_step(made: Trainer) -> Compiled:
    """Compiles, for one device, the drawing of a token after a whole sequence of a run's length.

    Raises:
      TooLarge: if the compiler finds no memory for it.
    """
    start = time.monotonic()
    device = made.mesh.devices.flat[0]
    compiled = _compile(decode.lower(made.model, made.run.train.seq_len, device), device)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.abstract().params))
    return _measured(compiled, start, size, 0)


def _compile(lowered: jax.stages.Lowered, device: Any) -> jax.stages.Compiled:
    # Where no GPU can time them, products compiled by XLA itself are untuned, and some fail.
    tuned = {"xla_gpu_enable_triton_gemm": False} if device.platform == "gpu" else None
    try:
        return lowered.compile(tuned)
    except jax.errors.JaxRuntimeError as error:
        if found := _EXHAUSTED.search(str(error)):
            amount, unit = (part for part in found.groups() if part is not None)
            raise TooLarge(int(float(amount) * _UNITS[unit])) from None
        said = " ".join(str(error).split())[:200]
        raise Refused(f"compile: the compiler of {device.device_kind} fails: {said}") from None


def _measured(
    compiled: jax.stages.Compiled, start: float, parameters: int, optimizer: int
) -> Compiled:
    found = compiled.memory_analysis()
    memory = Memory(
        parameters=parameters,
        optimizer=optimizer,
        arguments=max(found.argument_size_in_bytes - parameters - optimizer, 0),
        temporaries=found.temp_size_in_bytes,
        output=found.output_size_in_bytes - found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
    return Compiled(hlo.parse(compiled.as_text()), memory, time.monotonic() - start)


def local_bytes(tree: Any) -> int:
    """Bytes that one device holds of abstract arrays that are placed."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
