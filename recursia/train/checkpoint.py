"""Saving and restoring a run's state, through orbax.

Saves are asynchronous. A step counts only once its commit file is there: on plain file systems
orbax by default trusts directory names, and would choose a save that was cut off.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from recursia.errors import CheckpointError

FORMAT_VERSION = 1


class Checkpoints:
    """The saves of one run directory."""

    def __init__(self, directory: pathlib.Path, keep: int, is_read_only: bool = False):
        """Opens them.

        Args:
          directory: holds one folder a step.
          keep: how many of the latest stay.
          is_read_only: for evaluation: nothing is made, deleted or cleaned up.
        """
        self.directory = directory
        mode = ocp.options.AtomicityMode.COMMIT_FILE
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if is_read_only else keep,
            create=not is_read_only,
            read_only=is_read_only,
            cleanup_tmp_directories=not is_read_only,
            atomicity_options=ocp.options.AtomicityOptions(mode=mode),
            enable_async_checkpointing=True,
        )
        if is_read_only and not directory.is_dir():
            raise CheckpointError(f"{directory}: no checkpoints here; is it a run's directory?")
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_names=("state", "meta")
        )

    def steps(self) -> list[int]:
        """Returns the steps that were saved to the end, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begins to save; the state may be donated as soon as this returns.

        Args:
          step: updates made.
          state: a tree of arrays.
          meta: what the run must share with this one to go on: plain values.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),  # the manager's one handler, `restore` has it too
            meta=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **meta}),
        )
        self._manager.save(step, args=items)

    def choose(self, step: int | None) -> int:
        """Returns a step that is there: the latest if None.

        Raises:
          CheckpointError: if it is not.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: holds 0 finished checkpoints")
        if step is not None and step not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(
                f"{self.directory}: no checkpoint of step {step}; there is {known}"
            )
        return steps[-1] if step is None else step

    def meta(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given beside the state."""
        try:
            items = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = dict(self._manager.restore(step, args=items)["meta"])
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.directory}/{step}: cannot be read ({error})") from None
        if meta.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.directory}/{step}: format {meta.get('format_version')}, this is a reader "
                f"of {FORMAT_VERSION}"
            )
        return meta

    def restore(self, step: int, abstract: Any) -> Any:
        """Returns the state of a step, laid out as `abstract` says, whatever wrote it.

        Args:
          step: one of `steps()`.
          abstract: shapes, dtypes and shardings; a part of the saved tree will do.

        Raises:
          CheckpointError: if it cannot be read, or has other shapes.
        """
        try:
            arguments = ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            items = ocp.args.Composite(state=arguments)
            return self._manager.restore(step, args=items)["state"]
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.directory}/{step}: cannot be restored ({reason})"
            ) from None

    def finish(self) -> None:
        """Waits until what was begun is saved."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits likewise, and lets go of the directory."""
        self.finish()
        self._manager.close()


def same(meta: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Compares what a checkpoint was made with and what a run asks for.

    Raises:
      CheckpointError: naming the first field that differs, and both values.
    """
    theirs, ours = (
        dict(jax.tree_util.tree_leaves_with_path(m, is_leaf=_is_leaf)) for m in (meta, wanted)
    )
    for path in ours | theirs:
        if theirs.get(path) != ours.get(path):
            field = ".".join(str(getattr(part, "key", part)) for part in path)
            raise CheckpointError(
                f"{where}: its checkpoints have {field} {theirs.get(path)!r}, this run "
                f"{ours.get(path)!r}; use another workdir, or the same configuration"
            )


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, dict)
