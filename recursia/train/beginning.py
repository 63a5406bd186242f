"""Where a run begins: at the latest whole checkpoint, or at step 0, and with which settings."""

import pathlib

from recursia import distributed, settings, stall
from recursia import params as parameters
from recursia.data import verification
from recursia.errors import ConfigError
from recursia.train import earlier
from recursia.train.divergence import Watch
from recursia.train.metrics import Mute, Progress
from recursia.train.opening import opened
from recursia.train.placement import State
from recursia.workdir import directory, recovery, settings_history
from recursia.workdir.checkpoint import Checkpoints
from recursia.workdir.identity import same


class Beginning:
    """A run that is opened, and the state from which it goes on.

    Attributes:
      parts: of the run.
      checkpoints: of the run.
      watch: over its losses.
    """

    def __init__(self, run: settings.Run, workdir: pathlib.Path):
        """Opens the data, the mesh and the checkpoints, and computes nothing.

        Args:
          run: the settings.
          workdir: the run's directory.
        """
        self.run, self.workdir = run, workdir
        self.progress = Progress(run.train.num_steps) if distributed.is_first() else Mute()
        self.parts = opened(run, workdir)
        self.trainer = self.parts.trainer
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            run.checkpoint.keep,
            keep_every=run.checkpoint.keep_every,
            keep_best=run.checkpoint.keep_best,
        )
        self.watch = Watch(run.divergence, {})
        self._changed: settings_history.Changed = {}

    def resume(self, is_restart: bool = False) -> tuple[State, int]:
        """Returns the state to start from and its step: the latest whole step, or a new state.

        Args:
          is_restart: whether to begin at step 0 if all saved steps are lost.

        Raises:
          CheckpointError: if the checkpoint is of another model or other data, or all are lost.
        """
        while (start := recovery.latest(self.checkpoints, is_restart)) is not None:
            meta = self.checkpoints.meta(start)
            with distributed.together():
                same(meta, self.parts.identity, f"--workdir={self.workdir}")
                self._changed = self._compared() if start else {}
            self.progress.say(f"resuming {self.workdir} at step {start}")
            state = recovery.restored(self.checkpoints, start, self.trainer.abstract())
            if state is not None:
                self.watch = Watch(self.run.divergence, meta)
                return state, start
        self.watch = Watch(self.run.divergence, {})
        return self.first(), 0

    def _compared(self) -> settings_history.Changed:
        """Returns the settings that have changed; raises CheckpointError if one may not."""
        try:
            return settings_history.changed(self.workdir, self.run)
        except ConfigError as error:
            self.progress.say(f"{error}; the settings are not compared with those before")
            return {}

    def record(self, start: int, overrides: dict[str, str]) -> None:
        """Writes the settings into the directory, and says which have changed."""
        for line in settings_history.described(self._changed):
            self.progress.say(line)
        with distributed.together():
            if not distributed.is_first():
                return
            if self._changed:
                settings_history.append(self.workdir, start, self._changed)
            directory.record(self.run, overrides, self.parts.loader.tokenizer, self.workdir)
            verification.remember(self.workdir / verification.FILE, self.parts.known)

    def first(self) -> State:
        """Returns the state before the first step.

        Raises:
          ConfigError, CheckpointError: if the run of `train.init_from` cannot be read.
        """
        about = f"drawing {parameters.count(self.trainer.specs):,} parameters"
        with self.progress.doing(about), stall.waiting("initial state", stall.FIRST_SECONDS):
            state = self.trainer.init()
        if self.run.train.init_from:
            state, message = earlier.start(self.trainer, state, self.parts.loader.tokenizer)
            self.progress.say(message)
        return state

    def back(self) -> tuple[State, int]:
        """Returns the last saved state and its step; the batches seen since are passed over."""
        self.checkpoints.finish()
        watch = self.watch
        state, start = self.resume()
        self.watch = watch.returned(self.watch.meta(), start)
        return state, start
