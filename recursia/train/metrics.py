"""Speed of training, where its time goes, and the progress line."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from recursia import accounting, chips, console
from recursia.train.placement import State
from recursia.train.step import Trainer


def peak_flops() -> float:
    """Returns the FLOP/s that all devices could do: published, or measured where none is.

    On a device without an entry (a CPU), the rate is that of one float32 matrix product here, now.
    """
    kind = jax.devices()[0].device_kind
    if chip := chips.of_kind(kind):
        return chip.flops * jax.device_count()
    size = 1024
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    # Virtual devices of one host share its cores, so they are not counted apart.
    return 2 * size**3 / min(times)


class Mute:
    """A writer and a progress line that do nothing, where one is not needed."""

    def write(self, row: dict[str, Any]) -> None:
        """Writes nothing."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes nothing."""

    def incident(self, row: dict[str, Any]) -> None:
        """Writes nothing."""

    def flush(self) -> None:
        """Has nothing to write."""

    def show(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Draws nothing."""

    def say(self, line: str) -> None:
        """Prints nothing."""

    def doing(self, about: str) -> contextlib.AbstractContextManager:
        """Shows nothing."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Has nothing to close."""


class Meter:
    """Speed since training began, without the time of compilation and validation."""

    def __init__(self, trainer: Trainer):
        """Computes the FLOPs per token and the peak FLOP/s of the devices."""
        train = trainer.run.train
        self.tokens = train.batch_size * train.seq_len
        self._trainer, self._executed = trainer, 0.0
        self._flops = functools.cache(lambda config: train.batch_size * trainer.flops(config))
        self._sixn = accounting.sixn_flops_per_token(trainer.model)
        self.peak = peak_flops()
        self._since: float | None = None
        self._paused = 0.0

    def tick(self, step: int) -> dict[str, float]:
        """Returns tokens/s and FLOPs utilisation since the first call, which returns nothing."""
        now = time.perf_counter()
        if self._since is None:  # the first step includes compilation
            self._since, self._step, self._paused = now, step, 0.0
            return {}
        self._executed += self._flops(self._trainer.model_at(step - 1))
        seconds = max(now - self._since - self._paused, 1e-9)
        rate = self.tokens * (step - self._step) / seconds
        return {
            "tokens_per_second": rate,
            "flops_utilization": self._executed / seconds / self.peak,
            "flops_utilization_6n": rate * self._sixn / self.peak,
        }

    def pause(self, state: State) -> None:
        """Waits for the device to finish the step, and stops the clock."""
        jax.block_until_ready(state.step)
        self._stopped = time.perf_counter()

    def resume(self) -> None:
        """Starts the clock again."""
        self._paused += time.perf_counter() - self._stopped


class Ledger:
    """Seconds of each phase of a process, which sum to its run time.

    The phases are `init`, until the first batch; `compile`, of steps; `data_wait`, until a batch is
    read and its transfer to the devices has started; `step`, dispatching a step and waiting for the
    metrics of the one before; `save`, the part of a save that blocks, and the end of the last one;
    `eval`, validation and samples, with their compilation.
    """

    PHASES = ("init", "compile", "data_wait", "step", "save", "eval")

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Starts with `init`."""
        self._clock = clock
        self._seconds: dict[str, float] = dict.fromkeys(self.PHASES, 0.0)
        self._phase, self._since = "init", clock()

    def to(self, phase: str) -> None:
        """Begins a phase, and ends the one before."""
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def row(self) -> dict[str, float]:
        """Returns the seconds of each phase until now, by their names in metrics.jsonl."""
        self.to(self._phase)
        return {f"seconds_{phase}": seconds for phase, seconds in self._seconds.items()}

    def line(self) -> str:
        """Returns the seconds of each phase as a line of text."""
        total = sum(self.row().values())
        phases = "  ".join(f"{phase} {seconds:.1f}" for phase, seconds in self._seconds.items())
        return f"seconds  {phases}  in all {total:.1f}"


class Progress:
    """A line on standard error: step, loss, tokens/s, time left."""

    def __init__(self, num_steps: int):
        """Starts with nothing done of `num_steps`."""
        self.num_steps = num_steps
        self._shown = -math.inf

    def show(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Redraws the line; without a terminal, prints a line every few seconds.

        Args:
          step: the last finished step.
          loss: nats per token.
          tokens_per_second: NaN if unknown.
          seconds_left: NaN if unknown.
        """
        now = time.monotonic()
        is_last = step == self.num_steps
        if now - self._shown < (0.2 if console.is_live() else console.EVERY) and not is_last:
            return
        self._shown = now
        line = (
            f"step {step}/{self.num_steps}  loss {loss:.4f}  {_round(tokens_per_second)} tokens/s  "
            f"{_clock(seconds_left)} left"
        )
        console.write(f"\r\033[K{line}" if console.is_live() else line + "\n")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        console.say(line)

    def doing(self, about: str) -> contextlib.AbstractContextManager:
        """Shows a message while its context is open."""
        return console.doing(about)


def _round(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "?"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
