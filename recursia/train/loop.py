"""The training loop: resume, step, log, validate, sample, save.

The host keeps the device busy: the metrics of a step are read while the next step runs, batches
come from background threads, and checkpoints are written asynchronously.
"""

import contextlib
import math
import pathlib
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from recursia import console, distributed, settings, stall
from recursia import params as parameters
from recursia.data import manifest
from recursia.errors import DataError, Preempted, UserError
from recursia.notes import notes, programs
from recursia.train.ahead import Ahead, saved
from recursia.train.beginning import Beginning
from recursia.train.divergence import RolledBack
from recursia.train.metrics import Ledger, Meter, Mute
from recursia.train.migration import moved
from recursia.train.placement import State
from recursia.train.sinks import opening
from recursia.train.step import Update
from recursia.train.stop import Stop
from recursia.train.writer import Writer, forget, scored
from recursia.workdir import directory, ending, place, starts
from recursia.workdir.place import Lock


def train(
    run: settings.Run,
    workdir: pathlib.Path,
    overrides: dict[str, str],
    name: str = "the training step",
    is_restart: bool = False,
) -> None:
    """Trains a run, from the last checkpoint of its directory if there is one.

    Args:
      run: the settings.
      workdir: the run's directory.
      overrides: fields that the user typed, which the directory records.
      name: of the configuration, for progress messages.
      is_restart: whether to begin at step 0 if all saved steps are lost.

    Raises:
      ConfigError, DataError: if the settings or the data are not usable.
      CheckpointError: if the directory's checkpoints are of another model or other data, or are
        lost, or if another run trains there.
      StorageError: if a step cannot be saved.
      Diverged: if a loss, a gradient or a state is not finite, or a loss is a spike, and
        `run.divergence` does not let the run go on; that state is not saved.
      Preempted: after a signal to stop, once the state is saved.
    """
    directory.open_workdir(workdir)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            here = place.of(workdir)
            lock = here.lock(workdir, console.say) if distributed.is_first() else None
        if lock is not None:
            stack.enter_context(contextlib.closing(lock))
            stack.enter_context(ending.recorded(workdir))
        loop = Loop(run, workdir, name, lock)
        stack.enter_context(contextlib.closing(loop.checkpoints))
        state, start = loop.resume(is_restart)
        if start >= run.train.num_steps and not loop.owes(start):
            loop.progress.say(f"{workdir}: finished at step {start}; nothing to do")
            return
        if lock is not None:
            ending.begin(workdir)
        loop.record(start, overrides)
        while True:
            try:
                return loop.run_from(state, start)
            except RolledBack:
                del state
            state, start = loop.back()


class Loop(Beginning):
    """A run in progress.

    Attributes:
      own: the trainer of the phase, whose sharing the state has between steps; what is saved or
        validated has that of the model.
    """

    def __init__(
        self, run: settings.Run, workdir: pathlib.Path, name: str, lock: Lock | None = None
    ):
        """Opens the run, and computes nothing.

        Args:
          run: the settings.
          workdir: the run's directory.
          name: of the configuration, for progress messages.
          lock: of the directory, in the process that holds it.
        """
        self.ledger = Ledger()
        super().__init__(run, workdir)
        self.name, self.lock = name, lock
        self._compiled: set[Update] = set()
        self.own = self.trainer

    def run_from(self, state: State, start: int) -> None:
        """Runs the training steps after step `start`, whose state has the model's own sharing."""
        self.own = self.trainer
        run, paths_by_split = self.run, (self.parts.paths, self.parts.validation.paths)
        for split, paths in zip(manifest.SPLITS, paths_by_split, strict=True):
            self.progress.say(directory.described(paths, split))
        for note in notes(run):
            self.progress.say(f"note: {note}")
        for line in programs(run):
            self.progress.say(line)
        owes = self.owes(start)
        if owes and distributed.is_first():
            forget(self.workdir, start)
        self.meter = Meter(self.trainer)
        if distributed.is_first():
            starts.append(self.workdir, start, self.name, self.meter.peak)
        with (
            contextlib.closing(Stop(start, run.train.num_steps, self.watch.passed)) as stop,
            contextlib.closing(self.writes(start)) as self.writer,
            contextlib.closing(self.parts.loader.iterate(self.watch.batch(start + 1))) as batches,
        ):
            if owes:
                self.progress.say(f"validating step {start}, which is yet to be done")
                self.validate(start, state)
            self.steps(state, start, stop, Ahead(batches, run.train.num_steps - start, stop.ask))

    def steps(self, state: State, start: int, stop: Stop, batches: Ahead) -> None:
        """Runs the steps after `start`: to the end, to a signal, or to what cannot be read."""
        run, pending = self.run, None
        self.ledger.to("data_wait")
        batches.fill()
        for step in range(start + 1, run.train.num_steps + 1):
            self.ledger.to("data_wait")
            try:
                batch = self.trainer.put(batches.next())
            except DataError as error:
                if not distributed.is_alone():  # it alone knows
                    raise
                if pending:
                    self.log(*pending)
                self.abandon(step - 1, state, error)
            state, metrics = self.update(step, state, batch)
            if pending:
                self.log(*pending)
            pending = (step, metrics)
            is_last = step == run.train.num_steps
            saves = _is_due(run.checkpoint.every_steps, step) or is_last
            validates = _is_due(run.eval.every_steps, step) or is_last
            stops = stop.comes_after(step) and not is_last
            if saves or validates or stops:
                self.log(*pending)
                pending = None
                self.check(step, state)
            if saves or stops:
                self.save(step, state)
            if stops or is_last:
                self.settle(step)
            if stops:
                self.leave(step, batches.failure)
            if validates:
                self.validate(step, state)
        self.progress.say(self.ledger.line())

    def update(self, step: int, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """Sends a step to the devices; returns the state after it and its metrics."""
        own = self.trainer.in_phase(step - 1)
        if own.model != self.own.model:
            count = parameters.count(own.specs)
            self.progress.say(f"step {step} begins a plan of sharing with {count:,} parameters")
        state, self.own = moved(state, self.own, own), own
        update = self.trainer.step_function(step - 1)
        is_new = update not in self._compiled
        self.ledger.to("compile" if is_new else "step")
        if is_new:
            self.progress.say(self.compiling())
        # Sending a step may wait for the one before.
        compiles = stall.waiting("compilation", stall.FIRST_SECONDS)
        with compiles if is_new else stall.waiting("step"):
            state, metrics = update(state, batch, self.watch.losses.limit(step))
        self._compiled.add(update)
        self.ledger.to("step")
        return state, metrics

    def compiling(self) -> str:
        """Returns the message before the first call of a compiled step."""
        count = self.trainer.mesh.size
        cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        kept = f"the first time, then cached in {cache}" if cache else "each time, without a cache"
        devices = f"{count} device" + "s" * (count > 1)
        return f"compiling {self.name} for {devices}: half a minute or more {kept}"

    def writes(self, start: int) -> Writer | Mute:
        """Returns the writer of metrics and samples; only the first process writes."""
        if not distributed.is_first():
            return Mute()
        return Writer(self.workdir, start, opening.opened(self.run, self.workdir, start))

    def save(self, step: int, state: State) -> None:
        """Starts to save a step."""
        self.ledger.to("save")
        if self.lock is not None:
            self.lock.check()
        self.writer.flush()
        state = moved(state, self.own, self.trainer)
        meta = {**self.parts.identity, **self.watch.meta()}
        with self.progress.doing(f"saving step {step}"):
            self.checkpoints.save(step, state, meta)
        self.watch.saved()

    def settle(self, step: int) -> None:
        """Waits until a step is saved."""
        with self.progress.doing(f"saving step {step}"):
            self.checkpoints.finish()

    def leave(self, step: int, failure: DataError | None) -> NoReturn:
        """Ends all processes after a saved step: for a signal, or what one of them cannot read."""
        with distributed.together():
            if failure is not None:
                raise saved(failure, step)
        raise Preempted(f"stopped by a signal: saved step {step}; run the same command to resume")

    def abandon(self, step: int, state: State, error: UserError) -> NoReturn:
        """Saves the last step before the data could not be read, and raises the error.

        All processes must call it, each with its own error.
        """
        if step and distributed.from_first(step not in self.checkpoints.steps()):
            self.check(step, state)
            self.save(step, state)
            self.settle(step)
            error = saved(error, step)
        with distributed.together():
            raise error

    def log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Writes the metrics of a step.

        Raises:
          Diverged, RolledBack: if the loss or the gradient norm is not finite, or a spike, and the
            step was not skipped.
        """
        with stall.waiting("step"):
            loss, norm = (float(metrics[name]) for name in ("loss", "gradient_norm"))
        if reason := self.watch.fault(step, loss, norm):
            limit = float(self.watch.losses.limit(step))
            self.fault(step, reason, loss=loss, gradient_norm=norm, limit=limit)
            return
        speed = self.meter.tick(step)
        rate = speed.get("tokens_per_second", math.nan)
        seconds_left = (self.run.train.num_steps - step) * self.meter.tokens / rate
        self.progress.show(step, loss, rate, seconds_left)
        if step % self.run.log.every_steps == 0 or step == self.run.train.num_steps:
            values = jax.device_get(metrics)
            self.writer.write({"step": step, **values, **speed, **self.ledger.row()})

    def check(self, step: int, state: State) -> None:
        """Checks the state after a step whose loss and gradient are known to be sound.

        Raises:
          Diverged, RolledBack: if a parameter or a moment is not finite.
        """
        with stall.waiting("look at the state"):
            is_finite = bool(_is_finite(state))
        if not is_finite:
            self.fault(step, "its update is not finite")

    def fault(self, step: int, reason: str, **numbers: float) -> None:
        """Records what is wrong with a step, or with the state after it if it has no numbers."""
        batch = self.watch.batch(step)
        row = {"step": step, "policy": self.run.divergence.policy, "reason": reason, **numbers}
        self.writer.incident({**row, "batch": batch, "rows": self.parts.loader.places(batch)})
        before = self.checkpoints.steps()
        self.watch.decide(step, reason, bool(numbers), before, self.progress.say)

    def owes(self, step: int) -> bool:
        """Returns whether a saved step lacks its validation, or a part of it."""
        run, validation = self.run, self.parts.validation
        is_due = _is_due(run.eval.every_steps, step) or step == run.train.num_steps
        if not is_due or not 0 < step <= run.train.num_steps:
            return False
        wanted = bool(validation.paths), len(validation.prompts)
        return bool(distributed.from_first(not scored(self.workdir, step, *wanted)))

    def validate(self, step: int, state: State) -> None:
        """Writes the scores of the validation split and a sample of each prompt."""
        state = moved(state, self.own, self.trainer)
        with stall.waiting("step"):
            self.meter.pause(state)
        self.ledger.to("eval")
        try:
            scores = self.parts.validation.row(state.params)
        except UserError as error:
            self.abandon(step, state, error)
        if scores:
            row = {"step": step, **scores}
            self.checkpoints.finish()
            self.checkpoints.score(step, float(scores["validation_loss"]))
            self.writer.write({**row, **self.ledger.row()})
            shown = "  ".join(f"{k.removeprefix('validation_')} {_show(v)}" for k, v in row.items())
            self.progress.say(f"validation  {shown}")
        with self.progress.doing("drawing samples"):
            for prompt, text in self.parts.validation.samples(step, state.params):
                self.writer.sample(step, prompt, text)
        self.writer.flush()
        self.meter.resume()


def _is_due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


@jax.jit
def _is_finite(state: State) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def _show(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return " ".join(f"{x:.4f}" for x in np.atleast_1d(value))
