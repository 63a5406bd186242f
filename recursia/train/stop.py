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
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """Listens for SIGTERM, and for SIGUSR1 as schedulers send ahead."""

    def __init__(self):
        """Listens from now on."""
        self._is_told = False
        # Once processes are joined jax listens to SIGTERM, from before the first step on.
        self._is_joined = jax.distributed.is_initialized()
        if self._is_joined:
            handlers = {signal.SIGUSR1: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        else:
            handlers = dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), self._set)
        self._before = {number: signal.signal(number, call) for number, call in handlers.items()}

    def _set(self, *_: Any) -> None:
        self._is_told = True

    def comes_after(self, step: int) -> bool:
        """Returns whether the run ends after this step; to be asked once at every step."""
        if self._is_joined:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_told

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
