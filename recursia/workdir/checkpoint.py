"""Saving and restoring a run's state, through orbax.

Saves are asynchronous. A checkpoint is finished once its commit file exists: by default orbax
trusts directory names on local file systems, and would restore an interrupted save.
"""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

import recursia.config
from recursia.architecture import Model
from recursia.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
_MAX_DIFFERENCES = 5  # in a message


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: pathlib.Path, keep: int, is_read_only: bool = False):
        """Opens the checkpoints.

        Args:
          directory: holds a folder for each saved step.
          keep: number of checkpoints to keep, the latest.
          is_read_only: whether nothing is created or deleted, for evaluation.
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
            raise CheckpointError(f"{directory}: does not exist; is it in a run's directory?")
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_names=("state", "meta")
        )

    def steps(self) -> list[int]:
        """Returns the steps with a finished checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts an asynchronous save; the state may be donated as soon as this returns.

        Args:
          step: of the state.
          state: a tree of arrays.
          meta: values for JSON that a run must share to resume from this checkpoint.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),  # the handler that `restore` uses
            meta=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **meta}),
        )
        self._manager.save(step, args=items)

    def choose(self, step: int | None) -> int:
        """Returns the step, or the latest step if it is None.

        Raises:
          CheckpointError: if there is no checkpoint of that step.
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
        """Returns the `meta` that was saved with a step."""
        try:
            items = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = dict(self._manager.restore(step, args=items)["meta"])
        except Exception as error:  # orbax raises no narrower class for a truncated file
            raise self._refusal(step, "read", error) from None
        if meta.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.directory}/{step}: has format {meta.get('format_version')}, but this "
                f"version reads {FORMAT_VERSION}"
            )
        return meta

    def restore(self, step: int, abstract: Any) -> Any:
        """Returns the state of a step with the given shardings, whatever mesh saved it.

        Args:
          step: one of `steps()`.
          abstract: shapes, dtypes and shardings; a subtree of the saved tree is enough.

        Raises:
          CheckpointError: if it is not readable, or its parameters have other names or shapes.
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
        except Exception as error:  # as in `meta`
            raise self._refusal(step, "restored", error) from None

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Checks names and shapes of parameters, since a partial restore ignores missing ones."""
        try:
            path: Any = self.directory.absolute() / str(step) / "state"  # typed as one of etils
            saved = _shapes(ocp.PyTreeCheckpointHandler().metadata(path).tree)
        except Exception as error:  # as in `meta`
            raise self._refusal(step, "read", error) from None
        for name, shape in _shapes(abstract).items():
            if saved.get(name) != shape:
                raise CheckpointError(
                    f"{self.directory}/{step}: {name} has shape {saved.get(name)} there and "
                    f"{shape} here; use the version that saved it, or train anew"
                )

    def _refusal(self, step: int, done: str, error: Exception) -> CheckpointError:
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        return CheckpointError(f"{self.directory}/{step}: cannot be {done} ({reason})")

    def finish(self) -> None:
        """Waits until the started saves are finished."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until the started saves are finished, and closes the directory."""
        self.finish()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters of a state, by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    return {n: tuple(leaf.shape) for n, leaf in named.items() if n.startswith("params.")}


def _completed(model: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved model with the fields that have been added since, at their defaults."""
    try:
        values = recursia.config.to_dict(recursia.config.build(Model, model, "model"))
    except ConfigError:  # it has fields that have been removed since
        return model
    return json.loads(json.dumps(values))


def same(meta: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Checks that the identity of a checkpoint is that of a run.

    Args:
      meta: of the checkpoint.
      wanted: the run's `directory.identity`.
      where: the start of the message.

    Raises:
      CheckpointError: with the kinds that differ, or else the fields, and both values of each.
    """
    meta = {**meta, "model": _completed(meta["model"])}
    saved, here = (_flat(identity["model"], "") for identity in (meta, wanted))
    differences = [
        f"{name} is {saved[name]} in its checkpoints, {here[name]} in this run"
        for name in saved
        if name.endswith(".kind") and name in here and here[name] != saved[name]
    ]
    if not differences:
        saved, here = (_flat(identity["model"], "model.") for identity in (meta, wanted))
        differences = _differences(saved, here) + _data_differences(meta["data"], wanted["data"])
    if differences:
        others = len(differences) - _MAX_DIFFERENCES
        more = f"; and {others} more" if others > 0 else ""
        raise CheckpointError(
            f"{where}: {'; '.join(differences[:_MAX_DIFFERENCES])}{more}; use another workdir, or "
            "the same configuration"
        )


def _data_differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each difference of the data; old checkpoints hold only a fingerprint."""
    name = "cross_document_attention"
    differences = _differences({f"data.{name}": saved[name]}, {f"data.{name}": here[name]})
    if saved["fingerprint"] == here["fingerprint"]:  # of the contents: file names may differ
        return differences
    common = [field for field in here if field in saved and field not in ("fingerprint", name)]
    section = lambda name: f"{'train' if name in ('seq_len', 'batch_size') else 'data'}.{name}"
    by_path = lambda data: {section(name): data[name] for name in common}
    return differences + (
        _differences(by_path(saved), by_path(here))
        or ["its checkpoints have seen other data (files, tokenizer, seq_len, batch_size or seed)"]
    )


def _differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each field that differs."""
    return [
        f"{name} {saved.get(name)!r} in its checkpoints, {here.get(name)!r} in this run"
        for name in here | saved
        if saved.get(name) != here.get(name)
    ]


def _flat(section: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns the fields of nested sections, by dotted path."""
    fields = {}
    for name, value in section.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{path}{name}.")
        else:
            fields[f"{path}{name}"] = value
    return fields
