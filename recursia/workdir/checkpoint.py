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
_SHOWN = 5  # fields that differ


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
        except Exception as error:  # the library raises no narrower class for a file cut short
            raise self._refusal(step, "read", error) from None
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
          CheckpointError: if it cannot be read, or its parameters have other names or shapes.
        """
        self._check_shapes(step, abstract)
        try:
            arguments = ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            items = ocp.args.Composite(state=arguments)
            return self._manager.restore(step, args=items)["state"]
        except Exception as error:  # likewise
            raise self._refusal(step, "restored", error) from None

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Refuses other parameters: restoring leaves out what it does not find."""
        try:
            place = self.directory.absolute() / str(step) / "state"
            saved = _shapes(ocp.PyTreeCheckpointHandler().metadata(place).tree)
        except Exception as error:  # likewise
            raise self._refusal(step, "read", error) from None
        for name, shape in _shapes(abstract).items():
            if saved.get(name) != shape:
                raise CheckpointError(
                    f"{self.directory}/{step}: {name} is {saved.get(name)} there and {shape} here; "
                    "where an earlier version saved it, read it with that version, or train anew"
                )

    def _refusal(self, step: int, done: str, error: Exception) -> CheckpointError:
        reason = next(iter(str(error).split("\n")), "")[:200] or type(error).__name__
        return CheckpointError(f"{self.directory}/{step}: cannot be {done} ({reason})")

    def finish(self) -> None:
        """Waits until what was begun is saved."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits likewise, and lets go of the directory."""
        self.finish()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of parameters by their dotted names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    return {n: tuple(leaf.shape) for n, leaf in named.items() if n.startswith("params.")}


def same(meta: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Compares what a checkpoint was made with and what a run asks for.

    Raises:
      CheckpointError: naming the kinds that differ, else the fields, each with both values.
    """
    theirs, ours = meta["model"], wanted["model"]
    before, now = _flat(theirs, ""), _flat(ours, "")
    said = [
        f"{name} is {before[name]} in its checkpoints, {now[name]} in this run"
        for name in before
        if name.endswith(".kind") and name in now and now[name] != before[name]
    ]
    if not said:
        said = _other(_flat(theirs, "model."), _flat(ours, "model."))
        said += _other_data(meta["data"], wanted["data"])
    if said:
        more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
        raise CheckpointError(
            f"{where}: {'; '.join(said[:_SHOWN])}{more}; use another workdir, or the same "
            "configuration"
        )


def _other_data(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Returns how the data differs; older checkpoints say little more than whether it does."""
    name = "cross_document_attention"
    said = _other({f"data.{name}": theirs[name]}, {f"data.{name}": ours[name]})
    if theirs["fingerprint"] == ours["fingerprint"]:  # of the contents: names may have changed
        return said
    named = [field for field in ours if field in theirs and field not in ("fingerprint", name)]
    section = lambda name: f"{'train' if name in ('seq_len', 'batch_size') else 'data'}.{name}"
    of = lambda data: {section(name): data[name] for name in named}
    return said + (
        _other(of(theirs), of(ours))
        or ["its checkpoints have seen other data (files, tokenizer, seq_len, batch_size or seed)"]
    )


def _other(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Returns a line for each field that differs."""
    return [
        f"{name} {theirs.get(name)!r} in its checkpoints, {ours.get(name)!r} in this run"
        for name in ours | theirs
        if theirs.get(name) != ours.get(name)
    ]


def _flat(model: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns the fields of a model by their dotted names."""
    found = {}
    for name, value in model.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found
