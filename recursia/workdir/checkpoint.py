"""Saving and restoring a run's state, through orbax.

Saves are asynchronous. A step counts once its commit file exists, which is written after the
digests of its other files; by default orbax trusts directory names on local file systems, and would
restore an interrupted save.
"""

import asyncio
import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from recursia import buckets, console, distributed, stall
from recursia.errors import CheckpointError, StorageError, UserError
from recursia.workdir import addresses, digests, grouped, place, steps
from recursia.workdir.digests import Damaged
from recursia.workdir.history import FILE, History

FORMAT_VERSION = 2
_READ = (1, FORMAT_VERSION)  # in the first each array of a state was stored by itself


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 1,
        is_read_only: bool = False,
        *,
        keep_every: int = 0,
        keep_best: int = 0,
    ):
        """Opens the checkpoints.

        Args:
          directory: holds a folder for each saved step.
          keep: number of checkpoints to keep, the latest.
          is_read_only: whether nothing is created or deleted, for evaluation.
          keep_every: steps that are multiples of it are kept too, if it is not 0.
          keep_best: number of checkpoints that are kept for their validation loss.
        """
        if is_read_only and not directory.is_dir():
            raise CheckpointError(f"{directory}: does not exist; is it in a run's directory?")
        if not is_read_only:
            directory.mkdir(parents=True, exist_ok=True)
        if buckets.is_place(directory):
            addresses.teach()
        self.directory = directory.absolute()
        self.history = History(self.directory.with_name(FILE))
        self._kept = {"last": keep, "every": keep_every, "best": keep_best}
        self._saving: int | None = None
        items = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_arrays()),
            "meta": ocp.JsonCheckpointHandler(filename=steps.META),
        }
        # In a bucket items are written in place too: a rename would copy them.
        in_place = ocp.path.atomicity.CommitFileTemporaryPath
        options = ocp.CompositeOptions(
            temporary_path_class=in_place if buckets.is_place(directory) else None
        )
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=options, **items),
            checkpoint_metadata_store=ocp.metadata.metadata_store(
                enable_write=True, blocking_write=True
            ),
            temporary_path_class=_committed_by(self._commit),
        )

    def folder(self, step: int) -> pathlib.Path:
        """Returns the folder of a step."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Returns the steps with a finished checkpoint, in order."""
        return steps.finished(self.directory)

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts an asynchronous save; the state may be donated as soon as this returns.

        Args:
          step: of the state.
          state: a tree of arrays.
          meta: values for JSON that a run must share to resume from this checkpoint.

        Raises:
          StorageError: if this save or the one before cannot be written.
        """
        if step == self._saving or step in self.steps():
            return
        self.finish()
        arrays, groups = grouped.stored(state)
        meta = {"format_version": FORMAT_VERSION, "step": step, "groups": groups, **meta}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),  # the handler that `restore` uses
            meta=ocp.args.JsonSave(meta),
        )
        self._saving = step
        with self._writing(step):
            self._checkpointer.save(self.folder(step), args=items)

    def _commit(self, folder: pathlib.Path) -> None:
        """Makes a written step count; runs in the saving thread of the first process."""
        digests.seal(folder)
        self.history.add(int(folder.name), bytes=steps.size(folder))
        for step in self.history.surplus(self.steps(), **self._kept):
            steps.delete(self.folder(step))

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Makes one line of an error; what was written of the step is deleted."""
        try:
            with stall.waiting("save", stall.SAVE_SECONDS):
                yield
        except Exception as error:  # orbax and tensorstore raise many kinds
            self._saving = None
            raise StorageError(
                f"{self.folder(step)}: cannot be saved ({_reason(error)}); {self._left(step)}"
            ) from None

    def _left(self, step: int) -> str:
        """Deletes what was written of a step that failed; returns what is whole, in words."""
        try:
            if distributed.is_first() and not (self.folder(step) / digests.COMMIT).exists():
                place.of(self.directory).remove(self.folder(step))
            saved = self.steps()
        except StorageError:  # a bucket still does not answer
            saved = sorted({*self.history.saved} - {step})
        return f"the last whole step is {saved[-1]}" if saved else "no step is saved yet"

    def score(self, step: int, validation_loss: float) -> None:
        """Records the validation loss of a step, in nats per token, whether it is saved or not."""
        if distributed.is_first():
            self.history.add(step, validation_loss=validation_loss)

    def choose(self, step: int | None) -> int:
        """Returns a step whose files are whole: the given one, or the latest such step if None.

        All processes of a run must call it. A step that is passed over is named in a line.

        Raises:
          CheckpointError: if there is no checkpoint of that step, or its files are damaged.
        """
        with distributed.together():
            saved = self.steps()
            if not saved:
                raise CheckpointError(f"{self.directory}: holds 0 finished checkpoints")
            if step is not None and step not in saved:
                known = ", ".join(map(str, saved))
                raise CheckpointError(
                    f"{self.directory}: no checkpoint of step {step}; there is {known}"
                )
        for found in reversed(saved) if step is None else (step,):
            found = distributed.from_first(found)
            try:
                self.check(found)
                return found
            except Damaged as error:
                if found in (step, saved[0]):
                    raise
                say(f"{error}; reading the step before")
        raise CheckpointError(f"{self.directory}: holds 0 whole checkpoints")

    def check(self, step: int) -> bool:
        """Compares a step's files with their digests; all processes of a run must call it.

        Returns:
          Whether there are digests; a line says so if there are none.

        Raises:
          Damaged: in every process, if a file differs.
          CheckpointError: in every process, if a file cannot be read for another reason.
        """
        folder, failure, has_digests = self.folder(step), None, True
        first, count = distributed.is_first(), 1 if distributed.is_alone() else jax.process_count()
        index = 0 if count == 1 else jax.process_index()
        with console.doing(f"checking {folder}") if first else contextlib.nullcontext():
            try:
                has_digests = steps.check(folder, index, count)
            except UserError as error:
                failure = error
        codes = distributed.everyone(0 if failure is None else 1 + isinstance(failure, Damaged))
        if isinstance(failure, StorageError):
            raise failure
        if any(codes):  # every process raises the same class
            kind = CheckpointError if 1 in codes else Damaged
            other = f"{folder}: cannot be read by process {codes.index(max(codes))}"
            raise kind(str(failure or other))
        if not has_digests:
            say(f"{folder}: saved without digests by an older version; its files are not checked")
        return has_digests

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the `meta` that was saved with a step."""
        meta = steps.meta(self.folder(step))
        if meta.get("format_version") not in _READ:
            raise CheckpointError(
                f"{self.folder(step)}: has format {meta.get('format_version')}, but this version "
                f"reads {FORMAT_VERSION}"
            )
        return meta

    def restore(self, step: int, abstract: Any) -> Any:
        """Returns the state of a step with the given shardings, whatever mesh saved it.

        Args:
          step: one of `steps()`.
          abstract: shapes, dtypes and shardings; a subtree of the saved tree is enough.

        Raises:
          Damaged: if it is not readable.
          CheckpointError: if its arrays have other names or shapes.
        """
        groups = self.meta(step).get("groups")
        self._check_shapes(step, abstract, groups or {})
        try:
            wanted = abstract if groups is None else grouped.wanted(abstract, groups)
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            )
            items = ocp.args.Composite(state=arguments)
            with stall.waiting("restored state", stall.FIRST_SECONDS):
                found = self._checkpointer.restore(self.folder(step), args=items)["state"]
            return found if groups is None else grouped.taken(found, abstract, groups)
        except Exception as error:  # orbax raises no narrower class
            raise self._refusal(step, "restored", error) from None

    def _check_shapes(self, step: int, abstract: Any, groups: grouped.Groups) -> None:
        """Checks names and shapes of arrays, since a partial restore ignores missing ones."""
        try:
            path: Any = self.folder(step) / "state"  # typed as one of etils
            handler = ocp.PyTreeCheckpointHandler(type_handler_registry=_arrays())
            held = {name: tuple(shape) for group in groups.values() for name, shape in group}
            saved = _shapes(handler.metadata(path).tree) | held
        except Exception as error:  # as above
            raise self._refusal(step, "read", error) from None
        for name, shape in _shapes(abstract).items():
            if saved.get(name) != shape:
                raise CheckpointError(
                    f"{self.folder(step)}: {name} has shape {saved.get(name)} there and "
                    f"{shape} here; use the version that saved it, or train anew"
                )

    def _refusal(self, step: int, done: str, error: Exception) -> UserError:
        """Returns why a step cannot be used: files that match their digests are not to blame."""
        is_checked = (self.folder(step) / digests.FILE).exists()
        is_full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if is_checked and not is_full and buckets.is_place(self.directory):
            return StorageError(f"{self.folder(step)}: cannot be {done} ({_reason(error)})")
        kind = CheckpointError if is_checked or is_full else Damaged
        return kind(f"{self.folder(step)}: cannot be {done} ({_reason(error)})")

    def finish(self) -> None:
        """Waits until the started saves are finished; raises StorageError if one fails."""
        if self._saving is not None:
            with self._writing(self._saving):
                self._checkpointer.wait_until_finished()
            self._saving = None

    def close(self) -> None:
        """Waits until the started saves are finished, and closes the directory."""
        try:
            self.finish()
        finally:
            self._checkpointer.close()


def say(line: str) -> None:
    """Prints a line in the first process of a run."""
    if distributed.is_first():
        console.say(line)


def _arrays() -> Any:
    """Returns how arrays are written: without shardings, as whoever restores them says where.

    Shardings, and metadata of arrays beside those of the tree, take a quarter of a save's
    processor time where arrays are small.
    """
    handlers = ocp.type_handlers
    return handlers.create_type_handler_registry(
        (jax.Array, handlers.ArrayHandler(enable_write_sharding_file=False)),
        (np.ndarray, handlers.NumpyHandler()),
        (int, handlers.ScalarHandler()),
    )


def _committed_by(commit: Callable[[pathlib.Path], None]) -> type[Any]:
    """Returns how orbax writes a folder: in place, and `commit` at the end makes it count."""

    class Committed(ocp.path.atomicity.CommitFileTemporaryPath):
        async def finalize(self) -> None:
            await asyncio.to_thread(commit, buckets.path(os.fspath(self.get())))

    return Committed


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of a state, by dotted name."""
    return {name: tuple(leaf.shape) for name, leaf in grouped.named(tree).items()}
