"""When a run that is told to stop does so: after the same step in all its processes.

Each process learns of a signal by itself, at another moment. Alone, it stops after the step under
way. Of several, jax's preemption service carries the news: the process that was told tells the
coordinator, all say which step they are at, and all stop after the next one that none has begun.
That costs a step nothing on the device, and on the host a look at a local counter; a collective
over a flag would cost every step a program of its own. The service looks for a signal once a
second.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils

from recursia import console, signals


class Stop:
    """Listens for SIGTERM, SIGUSR1 as schedulers send ahead, Ctrl-C, and SIGHUP.

    Before the first step is made there is nothing to save: a signal ends the run at once.
    """

    def __init__(self, start: int, num_steps: int):
        """Listens from now on.

        Args:
          start: updates already made.
          num_steps: updates after which the run ends by itself.
        """
        self._step, self._num_steps = start, num_steps
        # Once processes are joined jax listens to SIGTERM, from before the first step on.
        self._is_joined = jax.distributed.is_initialized()
        theirs = {signal.SIGTERM} if self._is_joined else set()
        numbers = [number for number in signals.ENDINGS if number not in theirs]
        self._listener = signals.Listener(numbers, self._pass_on if theirs else self._say)
        self._listener.has_work = self._is_joined

    def _pass_on(self, number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _say(self, number: int) -> None:
        step = min(self._step + 1, self._num_steps)
        again = "; press Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        try:
            console.say(f"saving step {step}{again}")
        except RuntimeError:  # the signal came while a line was written
            os.write(2, f"\nsaving step {step}{again}\n".encode())

    def comes_after(self, step: int) -> bool:
        """Returns whether the run ends after this step; to be asked once at every step."""
        self._step = step
        if self._is_joined:
            return multihost_utils.reached_preemption_sync_point(step)
        self._listener.has_work = True
        return self._listener.told is not None

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        self._listener.close()
