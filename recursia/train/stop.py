"""Stopping after a signal: every process of a run stops after the same step.

Each process receives a signal at its own time. A run of one process stops after the current step.
With several, jax's preemption service agrees on the step: the process that received SIGTERM reports
it to the coordinator, every process reports its step, and all stop after the first step that none
has started. On each step this reads a local counter and launches no collective. The service checks
for a signal once a second.
"""

import os
import signal
import time

import jax
from jax.experimental import multihost_utils

from recursia import console, signals

AGREED_SECONDS = 5.0  # in which all processes have agreed on a step; the service looks every second


class Stop:
    """Listens for SIGTERM, Ctrl-C, SIGHUP and SIGUSR1, which schedulers send before a time limit.

    Before the first step there is nothing to save: a signal ends the run at once.
    """

    def __init__(self, start: int, num_steps: int, passed: int = 0):
        """Installs the signal handlers.

        Args:
          start: the step that the run resumes from.
          num_steps: the run's last step.
          passed: batches that no step of the run took; with it, steps never go back.
        """
        self._step, self._num_steps, self._passed = start, num_steps, passed
        # With several processes, jax's preemption service handles SIGTERM.
        self._is_joined = jax.distributed.is_initialized()
        by_jax = {signal.SIGTERM} if self._is_joined else set()
        numbers = [number for number in signals.ENDINGS if number not in by_jax]
        self._listener = signals.Listener(numbers, self._pass_on if by_jax else self._say)
        self._listener.has_work = self._is_joined

    def _pass_on(self, number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _say(self, number: int) -> None:
        step = min(self._step + 1, self._num_steps)
        again = "; press Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        try:
            console.say(f"saving step {step}{again}")
        except RuntimeError:  # the signal interrupted a write to the same stream
            os.write(2, f"\nsaving step {step}{again}\n".encode())

    def comes_after(self, step: int) -> bool:
        """Returns whether the run stops after this step; must be called once at every step."""
        self._step = step
        if self._is_joined:
            return multihost_utils.reached_preemption_sync_point(step + self._passed)
        self._listener.has_work = True
        return self._listener.received is not None

    def ask(self) -> None:
        """Tells all processes to stop, as a signal does, and waits until they have agreed."""
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(AGREED_SECONDS)

    def close(self) -> None:
        """Restores the signal handlers from before."""
        self._listener.close()
