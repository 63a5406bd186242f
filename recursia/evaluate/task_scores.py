"""Scores of a trained model on tasks of lm-evaluation-harness, by depth, mode and capacity."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.metadata
import io
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import yaml
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.tasks import TaskManager

from recursia import console
from recursia.errors import ConfigError, DataError
from recursia.evaluate import rows, variants
from recursia.evaluate.harness import HarnessLM
from recursia.evaluate.variants import Variant
from recursia.workdir.trained import Trained

_LIBRARIES = ("lm_eval", "datasets")
_OURS = (("query", "gold"), ("gold", "target"), ("query", "target"))
_CHATTER = ("lm_eval", "huggingface_hub", "datasets")  # loggers
_Loaded = dict[str, Any]  # tasks and groups by name, as the harness gives them


class Tasks:
    """Tasks, read once and then run on any number of models.

    Attributes:
      names: as they were asked for.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: pathlib.Path | None,
        *,
        num_fewshot: int | None = None,
        limit: int | None = None,
        seed: int = 0,
    ):
        """Reads tasks and their data.

        Args:
          names: of tasks, groups or tags.
          files: a folder of task files; None takes the harness's own tasks, whose data come from
            the net or its cache.
          num_fewshot: examples before each prompt; None takes what a task says.
          limit: rows of each task at most; None takes all.
          seed: of the examples that are drawn, and of draws.

        Raises:
          ConfigError: for an unknown task or metric, or too few rows that examples could be.
          DataError: for data that cannot be read, or of which prompts cannot be made.
        """
        self.names, self._limit, self._shots, self._seed = tuple(names), limit, num_fewshot, seed
        with _quiet():
            if files is not None and not files.is_dir():
                raise ConfigError(
                    f"--task_files={files}: is no folder; `recursia data tasks` makes one"
                )
            manager = TaskManager(include_path=files and str(files), include_defaults=files is None)
            known = manager.all_tasks
            if unknown := [name for name in names if name not in known]:
                _refuse_broken(files)
                raise ConfigError(_unknown(unknown[0], known, files))
            if files is not None:
                _read_here(manager)
            with console.doing(f"reading tasks {', '.join(names)}"):
                self._loaded = _load(manager, names, files)
                for name, task in self._loaded["tasks"].items():
                    self._set_shots(name, task)
                    self._check(name, task)

    def scores(self, trained: Trained, variant: Variant, say: Callable[[str], None]) -> list[dict]:
        """Returns a row for each task and group.

        Args:
          trained: the model.
          variant: how it is read.
          say: prints a line.

        Returns:
          Rows with the variant's names, `task`, `metrics`, `num_samples`, and where likelihoods
          were asked for `mean_depth`, the recursions per token; `num_cut` counts requests longer
          than the context, if there are any.
        """
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=self._seed)
        about = variants.title(variant.names)
        with _quiet(), contextlib.ExitStack() as making:
            making.enter_context(console.doing(f"making prompts, {about}"))
            how = {"seed": self._seed, "about": about, "say": say, "begin": making.close}
            lm = HarnessLM(trained, variant.model, variant.params, variant.mode, **how)
            found: Any = run_harness(
                lm, self._loaded, limit=self._limit, bootstrap_iters=1000, log_samples=False
            )
        table = []
        for name, results in found["results"].items():
            members = self._members(name)
            depths = [depth for member in members for depth in lm.depths[member]]
            cut = sum(lm.cut[member] for member in members)
            counts = [found["n-samples"][member]["effective"] for member in members]
            row = {**variant.names, "task": name, "metrics": _metrics(results)}
            row |= {"num_samples": sum(counts)}
            if depths:
                row["mean_depth"] = sum(depths) / len(depths)
            if cut:
                row["num_cut"] = cut
            table.append(row)
        return table

    def described(self) -> dict[str, Any]:
        """Returns what it takes to run the same again."""
        tasks = self._loaded["tasks"]
        version = lambda task: (task.get_config("metadata") or {}).get("version")
        return {
            "tasks": list(self.names),
            "task_versions": {name: version(task) for name, task in tasks.items()},
            "num_fewshot": {n: task.get_config("num_fewshot") for n, task in tasks.items()},
            "limit": self._limit,
            "seed": self._seed,
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }

    def _members(self, name: str) -> list[str]:
        """Returns the tasks of a group, or the task itself."""
        below = self._loaded.get("group_map", {}).get(name)
        if below is None:
            return [name]
        return [task for each in below for task in self._members(each)]

    def _set_shots(self, name: str, task: Task) -> None:
        given: Any = task
        asked, own = self._shots, given.get_config("num_fewshot")
        if asked is None or own == 0:
            given.set_config(key="num_fewshot", value=own or 0)
            return
        splits = ("fewshot_split", "training_split", "validation_split")
        has_other = any(
            (split := given.get_config(each)) and split != given.get_config("test_split")
            for each in splits
        )
        if asked and not has_other and not given.get_config("fewshot_config").samples:
            raise ConfigError(
                f"--num_fewshot={asked}: {name} has no rows besides those that are scored; take 0"
            )
        if asked > (most := len(given.fewshot_docs() or ())) and asked:
            raise ConfigError(
                f"--num_fewshot={asked}: {name} has {most} rows for examples; take at most {most}"
            )
        given.set_config(key="num_fewshot", value=asked)

    def _check(self, name: str, task: Task) -> None:
        """Refuses a task with an unknown metric, or of whose rows prompts cannot be made."""
        given: Any = task
        metrics = given._metric_fn_list if given.get_config("process_results") is None else {}
        if unknown := [metric for metric, found in metrics.items() if found is None]:
            raise ConfigError(f"--tasks: {name} asks for the metric {unknown[0]!r}, unknown here")
        given.set_fewshot_seed(seed=self._seed)
        try:
            given.build_all_requests(limit=self._limit, rank=0, world_size=1)
        except Exception as error:  # of templates and functions that a task brings along
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"--tasks: prompts of {name} cannot be made ({said[:200]})") from None


def _load(manager: TaskManager, names: Sequence[str], files: pathlib.Path | None) -> _Loaded:
    """Returns tasks with their data."""
    try:
        return dict(manager.load(list(names)))
    except DataError:
        raise
    except Exception as error:  # of settings, templates and functions that a task brings along
        _refuse_broken(files)
        said = " ".join(str(error).split())
        if "Duplicate task" in said:
            raise ConfigError(f"--tasks: {said}; give one of them") from None
        raise DataError(
            f"--tasks={','.join(names)}: cannot be read ({said[:200]}); the harness's own tasks "
            "need the net or its cache, `recursia data tasks` makes files for --task_files"
        ) from None


def _read_here(manager: TaskManager) -> None:
    """Lets tasks whose rows lie in files here read them by line, when they are made."""
    for name, entry in manager.task_index.items():
        settings = entry.cfg or {}
        paths = (settings.get("dataset_kwargs") or {}).get("data_files")
        if settings.get("dataset_path") == "json" and isinstance(paths, dict):
            asked = settings.get("doc_to_text"), settings.get("doc_to_target")
            made = rows.checked if asked in _OURS else lambda row: row
            paths = {split: _beside(entry.yaml_path, path) for split, path in paths.items()}
            settings = {**settings, "custom_dataset": functools.partial(_data, paths, made)}
            here = dataclasses.replace(entry, yaml_path=None, cfg=settings)
            manager.task_index[name] = here


def _beside(settings: pathlib.Path | None, path: Any) -> str:
    """Returns a path, or that of the file of its name beside settings that were moved with it."""
    beside = settings and pathlib.Path(settings).with_name(pathlib.Path(str(path)).name)
    is_moved = beside and beside.is_file() and not os.path.lexists(str(path))
    return str(beside if is_moved else path)


def _refuse_broken(files: pathlib.Path | None) -> None:
    """Raises DataError for settings in a folder that are no YAML; the harness passes over them."""
    for path in sorted(files.rglob("*.yaml")) if files else ():
        try:
            yaml.compose(path.read_bytes())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            said = " ".join(str(getattr(error, "problem", None) or error).split())
            raise DataError(f"{path}{line}: bad YAML, {said}; mend or remove it") from None


def _data(
    paths: dict[str, str], made: Callable[[rows.Row], rows.Row], **_: Any
) -> dict[str, datasets.Dataset]:
    """Returns the rows of task files by split; the harness says versions and such besides."""
    found = {}
    for split, path in paths.items():
        if not (given := list(rows.read(str(path), made))):
            raise DataError(f"{path}: has 0 rows, takes at least 1")
        found[split] = datasets.Dataset.from_list(given)
    return found


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a task; a filter's name, where there is one, follows the metric's."""
    found = {}
    for name, value in results.items():
        metric, comma, how = name.partition(",")
        if comma and isinstance(value, int | float):
            found[metric if how == "none" else f"{metric}, {how}"] = float(value)
    return found


def _unknown(name: str, known: Sequence[str], files: pathlib.Path | None) -> str:
    """Returns why a task is not there, and what is."""
    if files is not None:
        top = [each for each in known if not any(each.startswith(f"{k}_") for k in known)]
        return f"--tasks: no task {name!r} in {files}; there is {', '.join(top) or 'none'}"
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return (
        f"--tasks: the harness has no task {name!r} among its {len(known):,}; {hint}"
        "`lm_eval ls tasks` lists them, --task_files takes others"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the harness logs and prints off the terminal, and its processes from forking.

    It bootstraps some errors in copies of this process, which hold its devices and threads.
    """
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels, is_on = [logger.level for logger in loggers], "DISABLE_MULTIPROC" in os.environ
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not is_on:
            del os.environ["DISABLE_MULTIPROC"]
