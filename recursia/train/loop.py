"""The training loop: resume, step, log, validate, sample, save.

The host keeps the device busy: the metrics of a step are read while the next step runs, batches
come from background threads, and checkpoints are written asynchronously.
"""

import contextlib
import hashlib
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

import recursia.config
from recursia import budget, console, distributed, settings, sharding
from recursia import params as parameters
from recursia.data import packing
from recursia.data.loader import Loader, rows_here
from recursia.errors import ConfigError, Diverged, Preempted
from recursia.notes import notes
from recursia.sharing.weights import Tree
from recursia.train import earlier
from recursia.train.metrics import Ledger, Meter, Mute, Progress
from recursia.train.step import State, Trainer
from recursia.train.stop import Stop
from recursia.train.validation import Validation
from recursia.train.writer import Writer
from recursia.workdir import directory, recovery
from recursia.workdir.checkpoint import Checkpoints
from recursia.workdir.identity import same
from recursia.workdir.lock import Lock


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
      Diverged: if a loss, a gradient or a state is not finite; that state is not saved.
      Preempted: after a signal to stop, once the state is saved.
    """
    directory.open_workdir(workdir)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            lock = Lock(workdir, console.say) if distributed.is_first() else None
        if lock is not None:
            stack.enter_context(contextlib.closing(lock))
        loop = Loop(run, workdir, name, lock)
        stack.enter_context(contextlib.closing(loop.checkpoints))
        state, start = loop.resume(is_restart)
        if start >= run.train.num_steps:
            loop.progress.say(f"{workdir}: finished at step {start}; nothing to do")
            return
        if distributed.is_first():
            directory.record(run, overrides, loop.loader.tokenizer, workdir)
        loop.run_from(state, start)


class Loop:
    """A run in progress."""

    def __init__(
        self, run: settings.Run, workdir: pathlib.Path, name: str, lock: Lock | None = None
    ):
        """Opens the data, the mesh and the checkpoints, and computes nothing.

        Args:
          run: the settings.
          workdir: the run's directory.
          name: of the configuration, for progress messages.
          lock: of the directory, in the process that holds it.
        """
        self.run, self.workdir, self.name, self.lock = run, workdir, name, lock
        self.ledger = Ledger()
        self.progress = Progress(run.train.num_steps) if distributed.is_first() else Mute()
        with distributed.together():
            mesh = sharding.make_mesh(run.mesh)
            rows = run.train.batch_size // run.train.num_microbatches
            sharding.check_batch(rows, run.train.seq_len, mesh)
            self.paths = directory.data_directories(run.data, workdir)
        with distributed.together():
            self.loader = self.load(mesh)
            vocab = budget.vocab_size(run, self.loader.vocab_size)
            prompts = tuple(self._ids(prompt) for prompt in run.eval.prompts)
            has_split = lambda path: "validation" in packing.Reader(path).manifest["splits"]
            scored = tuple(filter(has_split, self.paths))
        self.identity = directory.identity(run, vocab, self.loader.identity)
        distributed.check_same("configuration or data", _digest(run, self.identity))
        teacher = earlier.teacher(run, vocab, self.loader.tokenizer, mesh)
        self.trainer = Trainer(run, run.model.sized(vocab), mesh, teacher)
        self.validation = Validation(self.trainer, self.loader.tokenizer, scored, prompts)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            run.checkpoint.keep,
            keep_every=run.checkpoint.keep_every,
            keep_best=run.checkpoint.keep_best,
        )

    def _ids(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt; raises ConfigError if there are none."""
        if ids := self.loader.tokenizer.encode(prompt):
            return ids
        raise ConfigError(f"config.eval.prompts: {prompt!r} has 0 tokens; give at least 1")

    def load(self, mesh: Mesh) -> Loader:
        """Opens the training data; this process reads only the rows that its devices hold."""
        data, train = self.run.data, self.run.train
        split = sharding.partition(("batch", None), self.run.mesh.rules)
        return Loader(
            self.paths,
            data.weights or (1.0,) * len(self.paths),
            "train",
            train.seq_len,
            train.batch_size,
            data.seed,
            data.cross_document_attention,
            rows_here(NamedSharding(mesh, split), (train.batch_size, train.seq_len)),
        )

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
                same(meta, self.identity, f"--workdir={self.workdir}")
            self.progress.say(f"resuming {self.workdir} at step {start}")
            state = recovery.restored(self.checkpoints, start, self.trainer.abstract())
            if state is not None:
                return state, start
        return self.first(), 0

    def first(self) -> State:
        """Returns the state before the first step.

        Raises:
          ConfigError, CheckpointError: if the run of `train.init_from` cannot be read.
        """
        with self.progress.doing(f"drawing {parameters.count(self.trainer.specs):,} parameters"):
            state = self.trainer.init()
        if self.run.train.init_from:
            state, message = earlier.start(self.trainer, state, self.loader.tokenizer)
            self.progress.say(message)
        return state

    def run_from(self, state: State, start: int) -> None:
        """Runs the training steps after step `start`."""
        run, paths_by_split = self.run, (self.paths, self.validation.paths)
        for split, paths in zip(packing.SPLITS, paths_by_split, strict=True):
            self.progress.say(directory.described(paths, split))
        for note in notes(run):
            self.progress.say(f"note: {note}")
        self.meter = Meter(self.trainer)
        with (
            contextlib.closing(Stop(start, run.train.num_steps)) as stop,
            contextlib.closing(self.writes(start)) as self.writer,
            contextlib.closing(self.loader.iterate(start)) as batches,
        ):
            pending, compiled = None, set()
            for step in range(start + 1, run.train.num_steps + 1):
                self.ledger.to("data_wait")
                batch = self.trainer.put(next(batches))
                update = self.trainer.step_function(step - 1)
                self.ledger.to("step" if update in compiled else "compile")
                if update not in compiled:
                    self.progress.say(self.compiling())
                state, metrics = update(state, batch)
                compiled.add(update)
                self.ledger.to("step")
                if pending:
                    self.log(*pending)
                pending = (step, metrics)
                is_last = step == run.train.num_steps
                is_due = lambda every, step=step: every and step % every == 0
                saves = is_due(run.checkpoint.every_steps) or is_last
                validates = is_due(run.eval.every_steps) or is_last
                stops = stop.comes_after(step) and not is_last
                if saves or validates or stops:
                    self.log(*pending)
                    pending = None
                    check(step, state, self.checkpoints.steps())
                if validates:  # before the save: a run resumed from it does not validate its step
                    self.meter.pause(state)
                    self.ledger.to("eval")
                    self.validate(step, state.params)
                    self.meter.resume()
                if saves or stops:
                    self.ledger.to("save")
                    if self.lock is not None:
                        self.lock.check()
                    self.checkpoints.save(step, state, self.identity)
                if stops or is_last:
                    with self.progress.doing(f"saving step {step}"):
                        self.checkpoints.finish()
                    self.progress.say(self.ledger.line())
                if stops:
                    raise Preempted(
                        f"stopped by a signal: saved step {step}; run the same command to resume"
                    )

    def compiling(self) -> str:
        """Returns the message before the first call of a compiled step."""
        count = self.trainer.mesh.size
        place = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        kept = f"the first time, then cached in {place}" if place else "each time, without a cache"
        devices = f"{count} device" + "s" * (count > 1)
        return f"compiling {self.name} for {devices}: half a minute or more {kept}"

    def writes(self, start: int) -> Writer | Mute:
        """Returns the writer of metrics and samples; only the first process writes."""
        if not distributed.is_first():
            return Mute()
        return Writer(self.workdir, start, self.run.log.tensorboard)

    def log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Writes the metrics of a step.

        Raises:
          Diverged: if the loss or the gradient norm is not finite.
        """
        loss, norm = (float(metrics[name]) for name in ("loss", "gradient_norm"))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            values = f"loss {loss}, gradient norm {norm}"
            raise Diverged(_diverged(step, values, self.checkpoints.steps()))
        speed = self.meter.tick(step)
        rate = speed.get("tokens_per_second", math.nan)
        seconds_left = (self.run.train.num_steps - step) * self.meter.tokens / rate
        self.progress.show(step, loss, rate, seconds_left)
        if step % self.run.log.every_steps == 0 or step == self.run.train.num_steps:
            values = jax.device_get(metrics)
            self.writer.write({"step": step, **values, **speed, **self.ledger.row()})

    def validate(self, step: int, params: Tree) -> None:
        """Writes the scores of the validation split and a sample of each prompt."""
        if scores := self.validation.row(params):
            row = {"step": step, **scores}
            self.checkpoints.score(step, float(scores["validation_loss"]))
            self.writer.write({**row, **self.ledger.row()})
            shown = "  ".join(f"{k.removeprefix('validation_')} {_show(v)}" for k, v in row.items())
            self.progress.say(f"validation  {shown}")
        for prompt, text in self.validation.samples(step, params):
            self.writer.sample(step, prompt, text)


def check(step: int, state: State, saved: list[int]) -> None:
    """Checks the state after a step whose loss and gradient are known to be finite.

    Args:
      step: of the state.
      state: after the update.
      saved: steps with a checkpoint, for the message.

    Raises:
      Diverged: if a parameter or a moment is not finite.
    """
    if not _is_finite(state):
        raise Diverged(_diverged(step, "its update is not finite", saved))


@jax.jit
def _is_finite(state: State) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def _digest(run: settings.Run, identity: dict[str, Any]) -> str:
    """Returns a digest of the settings that all processes must share: all but the data's paths."""
    shared = recursia.config.to_dict(run) | {"data": None, "identity": identity}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def _diverged(step: int, reason: str, saved: list[int]) -> str:
    last = f"the last checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved yet"
    return f"step {step}: {reason}; {last}. Lower the learning rate, or look at the batch"


def _show(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return " ".join(f"{x:.4f}" for x in np.atleast_1d(value))
