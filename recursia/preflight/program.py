"""The training step and the decoding step, compiled ahead of time for described devices."""

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
from recursia.train import earlier
from recursia.train.replicated import trainer_of
from recursia.train.step import Trainer

_EXHAUSTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Refused(UserError):
    """A compilation failed for a reason other than memory."""

    exit_code = 1


class TooLarge(UserError):
    """A program needs more memory than the device has.

    Attributes:
      needed: bytes per device, arguments included.
    """

    exit_code = 1

    def __init__(self, needed: int):
        super().__init__(f"the program needs {needed} bytes per device")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a program's memory on one device.

    Attributes:
      parameters: of the device's float32 shards.
      optimizer: of the device's optimizer state.
      arguments: of the other arguments of a step: the batch, and a teacher's parameters.
      temporaries: of buffers within a step, mostly gradients and activations.
      output: of the results that do not reuse an argument's buffer.
      code: of the compiled program.
    """

    parameters: int
    optimizer: int
    arguments: int
    temporaries: int
    output: int
    code: int

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step: its program, its memory, and the seconds of compilation."""

    program: hlo.Program
    memory: Memory
    seconds: float


def make_trainer(run: settings.Run, devices: Sequence[Any]) -> Trainer:
    """Returns the trainer of a run on the given devices.

    Raises:
      ConfigError: if the mesh has another number of devices, or does not divide the batch or a
        width.
      DataError: if the vocabulary's size has to be read from data that is not readable.
      ConfigError, CheckpointError, DataError: if `distill.teacher` is not readable.
    """
    mesh = sharding.make_mesh(run.mesh, list(devices))
    rows = run.train.batch_size // run.train.num_microbatches
    sharding.check_batch(rows, run.train.seq_len, mesh, run.replicas.count)
    vocab = budget.vocab_size(run)
    teacher = earlier.outline(run, vocab, mesh)
    trainer = trainer_of(run, run.model.sized(vocab), mesh, teacher)
    _ = trainer.state_shardings  # raises for a width that does not divide
    return trainer


def train_step(trainer: Trainer, step: int) -> Compiled:
    """Compiles a training step.

    Raises:
      TooLarge: if it needs more memory than the device has.
    """
    start = time.monotonic()
    compiled = _compile(trainer.lower(step), trainer.mesh.devices.flat[0])
    state = trainer.abstract()
    return _measured(compiled, start, local_bytes(state.params), local_bytes(state.opt_state))


def decode_step(trainer: Trainer) -> Compiled:
    """Compiles, for one device, the step that draws the last token of a sequence.

    Raises:
      TooLarge: if it needs more memory than the device has.
    """
    start = time.monotonic()
    device = trainer.mesh.devices.flat[0]
    compiled = _compile(decode.lower(trainer.model, trainer.run.train.seq_len, device), device)
    weights = jax.tree.leaves(trainer.abstract().params)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    return _measured(compiled, start, num_bytes, 0)


def _compile(lowered: jax.stages.Lowered, device: Any) -> jax.stages.Compiled:
    # Without a GPU to autotune on, some of XLA's Triton matrix products fail to compile.
    options: dict[str, str | bool] = {}
    if device.platform == "gpu":
        options["xla_gpu_enable_triton_gemm"] = False
    try:
        return lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        if exhausted := _EXHAUSTED.search(str(error)):
            amount, unit = (group for group in exhausted.groups() if group is not None)
            raise TooLarge(int(float(amount) * _UNITS[unit])) from None
        message = " ".join(str(error).split())[:200]
        raise Refused(f"compile: the compiler of {device.device_kind} fails: {message}") from None


def _measured(
    compiled: jax.stages.Compiled, start: float, parameters: int, optimizer: int
) -> Compiled:
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats is not None and text is not None  # compilers for CPU, GPU and TPU give both
    memory = Memory(
        parameters=parameters,
        optimizer=optimizer,
        arguments=max(stats.argument_size_in_bytes - parameters - optimizer, 0),
        temporaries=stats.temp_size_in_bytes,
        output=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    return Compiled(hlo.parse(text), memory, time.monotonic() - start)


def local_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of sharded abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
