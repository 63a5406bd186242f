"""The training loop: resume, step, log, validate, sample, save.

The device never waits for it: a step's numbers are read once the next step is under way, batches
come from background threads, and saves are asynchronous.
"""

import contextlib
import functools
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
from recursia import budget, distributed, scores, settings, sharding
from recursia import params as parameters
from recursia.data import packing
from recursia.data.loader import Loader, rows_here
from recursia.errors import ConfigError, Diverged, Preempted
from recursia.generate import decode
from recursia.notes import notes
from recursia.train import earlier
from recursia.train.metrics import Ledger, Meter, Mute, Progress, Writer
from recursia.train.step import State, Trainer
from recursia.train.stop import Stop
from recursia.workdir import directory
from recursia.workdir.checkpoint import Checkpoints, same


def train(
    run: settings.Run,
    workdir: pathlib.Path,
    overrides: dict[str, str],
    name: str = "the training step",
) -> None:
    """Trains, or goes on where the directory's last checkpoint stands.

    Args:
      run: the settings.
      workdir: where everything is written.
      overrides: what the user changed, to be recorded.
      name: of the configuration, for who watches.

    Raises:
      ConfigError, DataError: for what cannot run.
      CheckpointError: if the directory holds another model's, or other data's, checkpoints.
      Diverged: at a loss or gradient that is not finite; no checkpoint holds it.
      Preempted: when told to stop, once the state is saved.
    """
    directory.open_workdir(workdir)
    loop = Loop(run, workdir, name)
    try:
        state, start = loop.resume()
        if start >= run.train.num_steps:
            loop.progress.say(f"{workdir}: finished at step {start}; nothing to do")
            return
        if distributed.is_first():
            directory.record(run, overrides, loop.loader.tokenizer, workdir)
        loop.run_from(state, start)
    finally:
        loop.checkpoints.close()


class Loop:
    """A run in progress."""

    def __init__(self, run: settings.Run, workdir: pathlib.Path, name: str):
        """Opens data, mesh and checkpoints; nothing is computed yet."""
        self.run, self.workdir, self.name, self.ledger = run, workdir, name, Ledger()
        self.progress = Progress(run.train.num_steps) if distributed.is_first() else Mute()
        with distributed.together():
            mesh = sharding.make_mesh(run.mesh)
            rows = run.train.batch_size // run.train.num_microbatches
            sharding.check_batch(rows, run.train.seq_len, mesh)
            self.paths = directory.data_directories(run.data, workdir)
        with distributed.together():
            self.loader = self.load(mesh)
            vocab = budget.vocab_size(run, self.loader.vocab_size)
            self.prompts = [self._ids(prompt) for prompt in run.eval.prompts]
        self.identity = directory.identity(run, vocab, self.loader.identity)
        distributed.check_same("configuration or data", _digest(run, self.identity))
        teacher = earlier.teacher(run, vocab, self.loader.tokenizer, mesh)
        self.trainer = Trainer(run, run.model.sized(vocab), mesh, teacher)
        self.checkpoints = Checkpoints(workdir / "checkpoints", run.checkpoint.keep)

    @functools.cached_property
    def scored(self) -> tuple[str, ...]:
        """The data directories that have a validation split."""
        has = lambda path: "validation" in packing.Reader(path).manifest["splits"]
        return tuple(filter(has, self.paths))

    def _ids(self, prompt: str) -> list[int]:
        """Returns the ids of a prompt.

        Raises:
          ConfigError: if it has none.
        """
        if ids := self.loader.tokenizer.encode(prompt):
            return ids
        raise ConfigError(f"config.eval.prompts: {prompt!r} has 0 tokens; give at least 1")

    def load(self, mesh: Mesh) -> Loader:
        """Opens the training data, of which this process reads what its devices hold."""
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

    def resume(self) -> tuple[State, int]:
        """Returns the state to start from, and the updates it has had.

        Raises:
          CheckpointError: if the saved run has another model or other data.
        """
        steps = self.checkpoints.steps()
        start = distributed.from_first(steps[-1] if steps else -1)
        if start < 0:
            return self.first(), 0
        meta = self.checkpoints.meta(start)
        with distributed.together():
            same(meta, self.identity, f"--workdir={self.workdir}")
        self.progress.say(f"resuming {self.workdir} at step {start}")
        return self.checkpoints.restore(start, self.trainer.abstract()), start

    def first(self) -> State:
        """Returns the state before the first step.

        Raises:
          ConfigError, CheckpointError: if it is to start from a run that cannot be read.
        """
        with self.progress.doing(f"drawing {parameters.count(self.trainer.specs):,} parameters"):
            state = self.trainer.init()
        if self.run.train.init_from:
            state, said = earlier.start(self.trainer, state, self.loader.tokenizer)
            self.progress.say(said)
        return state

    def run_from(self, state: State, start: int) -> None:
        """Makes the steps from `start` on."""
        run = self.run
        for split, paths in zip(packing.SPLITS, (self.paths, self.scored), strict=True):
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
                if validates:  # before the save, from which a run cut off would not come back to it
                    self.meter.pause(state)
                    self.ledger.to("eval")
                    self.validate(step, state.params)
                    self.meter.resume()
                if saves or stops:
                    self.ledger.to("save")
                    self.checkpoints.save(step, state, self.identity)
                if stops or is_last:
                    with self.progress.doing(f"saving step {step}"):
                        self.checkpoints.finish()
                    self.progress.say(self.ledger.line())
                if stops:
                    raise Preempted(f"told to stop: saved step {step}; run it again to go on")

    def compiling(self) -> str:
        """Returns what the first call of a step takes its time for."""
        count = self.trainer.mesh.size
        place = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        kept = f"the first time, then read from {place}" if place else "each time, without a cache"
        devices = f"{count} device" + "s" * (count > 1)
        return f"compiling {self.name} for {devices}: half a minute or more {kept}"

    def writes(self, start: int) -> Writer | Mute:
        """Returns what writes rows and samples: in one process of all."""
        if not distributed.is_first():
            return Mute()
        return Writer(self.workdir, start, self.run.log.tensorboard)

    def log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Writes a step's numbers, which the device has had a step's time to finish.

        Raises:
          Diverged: if they are not finite.
        """
        loss, norm = (float(metrics[name]) for name in ("loss", "gradient_norm"))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss {loss}, gradient norm {norm}"
            raise Diverged(_diverged(step, what, self.checkpoints.steps()))
        speed = self.meter.tick(step)
        rate = speed.get("tokens_per_second", math.nan)
        left = (self.run.train.num_steps - step) * self.meter.tokens / rate
        self.progress.show(step, loss, rate, left)
        if step % self.run.log.every_steps == 0 or step == self.run.train.num_steps:
            measured = jax.device_get(metrics)
            self.writer.write({"step": step, **measured, **speed, **self.ledger.row()})

    def validate(self, step: int, params: Any) -> None:
        """Scores the validation split as published and, where that looks ahead, causally.

        The gap is what the look ahead was worth, in nats per token.
        """
        run, config = self.run, self.trainer.model
        row: dict[str, Any] = {"step": step}
        if not self.scored:
            return self.sample(step, params)
        for mode in config.modes:
            score = scores.score(
                params,
                config,
                scores.validation_batches(
                    run, self.scored, run.eval.num_batches, self.trainer.mesh
                ),
                self.loader.tokenizer.token_bytes(),
                mode=mode,
                mesh=self.trainer.mesh,
                rules=run.mesh.rules,
            )
            suffix = "" if mode == "eval" else "_causal"
            row[f"validation_loss{suffix}"] = score.nats_per_token
            row[f"validation_bits_per_byte{suffix}"] = score.bits_per_byte
            row[f"validation_mean_depth{suffix}"] = score.mean_depth
            row[f"validation_lens_loss{suffix}"] = score.lens_nats_per_token
        if "validation_loss_causal" in row:
            row["validation_causal_gap"] = row["validation_loss_causal"] - row["validation_loss"]
        self.writer.write({**row, **self.ledger.row()})
        shown = "  ".join(f"{k.removeprefix('validation_')} {_show(v)}" for k, v in row.items())
        self.progress.say(f"validation  {shown}")
        self.sample(step, params)

    def sample(self, step: int, params: Any) -> None:
        """Continues each prompt of the configuration."""
        run, tokenizer = self.run, self.loader.tokenizer
        for index, (prompt, ids) in enumerate(zip(run.eval.prompts, self.prompts, strict=True)):
            key = jax.random.fold_in(jax.random.key(run.train.seed), step)
            drawn = decode.generate(
                params,
                self.trainer.model,
                ids,
                num_tokens=run.eval.sample_tokens,
                window=run.train.seq_len,
                temperature=run.eval.temperature,
                end_of_text=tokenizer.end_of_text,
                key=jax.random.fold_in(key, index),
            )
            self.writer.sample(step, prompt, tokenizer.continuation(ids, drawn))


def check(step: int, state: State, saved: list[int]) -> None:
    """Checks the state after a step whose loss and gradient are known to be finite.

    Args:
      step: the updates it has had.
      state: to be checked.
      saved: steps with a checkpoint.

    Raises:
      Diverged: if the update made something that is not.
    """
    if not _is_finite(state):
        raise Diverged(_diverged(step, "its update is not finite", saved))


@jax.jit
def _is_finite(state: State) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def _digest(run: settings.Run, identity: dict[str, Any]) -> str:
    """Returns a digest of what must be the same in all processes: not where they find the data."""
    given = recursia.config.to_dict(run) | {"data": None, "identity": identity}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _diverged(step: int, what: str, saved: list[int]) -> str:
    last = f"the last checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved yet"
    return f"step {step}: {what}; {last}. Lower the learning rate, or look at the batch"


def _show(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return " ".join(f"{x:.4f}" for x in np.atleast_1d(value))
