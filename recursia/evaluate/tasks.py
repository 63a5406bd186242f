"""Local task files for lm-evaluation-harness: a YAML of settings beside JSON Lines of rows.

The prompts are made here, from data sets with one row a line, and are those of the harness's own
tasks of the same names; so the settings only say which field is which. JSON is YAML, and written.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from recursia import console, jsonlines, safely
from recursia.data import files
from recursia.errors import DataError
from recursia.evaluate import rows
from recursia.evaluate.rows import Row, WrongRow

_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_NORM = {**_ACC, "metric": "acc_norm"}  # by the characters of the choice
_PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
_SUFFIXES = tuple(f".jsonl{packed}" for packed in files.COMPRESSIONS)


@dataclasses.dataclass(frozen=True)
class Task:
    """How a data set becomes a task.

    Attributes:
      file: name of its rows, without suffix.
      made: from a row of the data set to one of the task.
      metrics: of the harness.
      version: of the harness's task with these prompts.
      of: the field that says which task of a group a row is of; empty: this is one task.
      shots: name of rows that examples are taken from, the first ones first.
      about: what stands before the prompts of a task of a group, after its name in words.
      by_size: whether a group's mean weighs its tasks by their rows; None: its tasks have a tag in
        common, and no mean.
      delimiter: what stands between a prompt and what follows.
    """

    file: str
    made: Callable[[Row], Row]
    metrics: tuple[dict[str, Any], ...] = (_ACC,)
    version: float = 1.0
    of: str = ""
    shots: str = ""
    about: str = ""
    by_size: bool | None = True
    delimiter: str = " "


def _choice(query: str, choices: list[str], row: Row) -> Row:
    return {"query": query, "choices": choices, "gold": rows.gold(row, choices)}


def _question(row: Row) -> Row:
    query = f"Question: {rows.text(row, 'prompt')}\nAnswer:"
    return _choice(query, rows.texts(row, "choices"), row)


def _beginning(row: Row) -> Row:
    return _choice(rows.text(row, "prompt"), rows.texts(row, "choices"), row)


def _passage(row: Row) -> Row:
    return _choice(f"{rows.text(row, 'prompt')}\nAnswer:", ["no", "yes"], row)


def _lettered(row: Row) -> Row:
    choices = rows.texts(row, "choices")
    if len(choices) != 4:
        raise WrongRow(f"field 'choices' has {len(choices)} texts, takes 4")
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    asked = rows.text(row, "prompt").strip()
    return _choice("\n".join([asked, *lines, "Answer:"]), list("ABCD"), row)


def _pair(row: Row) -> Row:
    sentences = [rows.text(row, f"sentence_{which}") for which in ("good", "bad")]
    return {"query": "", "choices": sentences, "gold": 0}


def _last_word(row: Row) -> Row:
    whole = f"{rows.text(row, 'context')} {rows.text(row, 'target')}"
    query, _, word = whole.rpartition(" ")
    return {"query": query, "target": f" {word}"}


def _blank(row: Row) -> Row:
    before, blank, after = rows.text(row, "sentence").partition("_")
    if not blank:
        raise WrongRow("field 'sentence' has no '_' to be filled")
    contexts = [before + rows.text(row, f"option{which}") for which in (1, 2)]
    return {"contexts": contexts, "target": after.strip(), "gold": rows.gold(row, contexts)}


def _captioned(row: Row) -> Row:
    """Returns an ending's row: a caption's last sentence, begun only, starts with a capital."""
    prompt, begun = rows.text(row, "prompt"), ""
    is_caption = not prompt.startswith("[header]")
    if is_caption and (cut := re.fullmatch(r"(.*[.!?]) ([^.!?]*)", prompt, re.DOTALL)):
        prompt, begun = cut[1], cut[2].capitalize()
    query = _plain(f"{rows.text(row, 'activity_label')}: {prompt} {begun}")
    return _choice(query, [_plain(each) for each in rows.texts(row, "choices")], row)


def _plain(text: str) -> str:
    """Returns a text without the marks of the web pages that it was taken from."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


TASKS = {
    "blimp": Task("blimp", _pair, of="UID", by_size=False),
    "lambada_openai": Task("lambada_openai_test", _last_word, (_PERPLEXITY, _ACC)),
    "piqa": Task("piqa_validation", _question, (_ACC, _NORM)),
    "hellaswag": Task("hellaswag_validation", _captioned, (_ACC, _NORM)),
    "winogrande": Task("winogrande_xl_validation", _blank),
    "arc_easy": Task("arc_easy_test", _question, (_ACC, _NORM)),
    "arc_challenge": Task("arc_challenge_test", _question, (_ACC, _NORM)),
    "openbookqa": Task("openbookqa_test", _beginning, (_ACC, _NORM)),
    "boolq": Task("boolq_validation", _passage, version=2.0),
    "mmlu": Task(
        "mmlu_test",
        _lettered,
        of="subject",
        shots="mmlu_dev",
        about="The following are multiple choice questions (with answers) about",
    ),
    "two_hop": Task("two_hop_test", _beginning, of="coverage", by_size=None, delimiter=""),
}


def make(source: pathlib.Path, output: pathlib.Path) -> dict[str, int]:
    """Writes the task files of all data sets in a folder; returns the rows of each.

    Args:
      source: holds some of the files that `TASKS` names, with a suffix of JSON Lines.
      output: a new directory. The settings name it, as the harness does not look beside them.

    Raises:
      ConfigError: if the output holds something, or cannot be written.
      DataError: if the folder holds none of the files, or a line is broken.
    """
    found = {name: path for name, task in TASKS.items() if (path := _find(source, task.file))}
    if not source.is_dir():
        raise DataError(f"--input={source}: is no folder; give one with data sets")
    if not found:
        names = ", ".join(f"{task.file}.jsonl" for task in TASKS.values())
        raise DataError(f"{source}: holds none of the files {names}, .gz or .zst or not")
    counts = {}
    with safely.new_folder(output) as made:
        with console.bar("making tasks", len(found), "tasks") as advance:
            for name, path in found.items():
                counts[name] = _make(name, TASKS[name], source, path, made, output.resolve())
                advance(1)
    return counts


def _make(
    name: str, task: Task, source: pathlib.Path, path: str, made: pathlib.Path, place: pathlib.Path
) -> int:
    """Writes the files of a task, or of those of a group; returns their rows."""
    splits = {"test": _by_task(task, path)}
    if shots := _find(source, task.shots):
        splits["dev"] = _by_task(task, shots)
    members = {}
    for of, some in splits["test"].items():
        member = f"{name}_{of}" if task.of else name
        here = {split: given[of] for split, given in splits.items() if of in given}
        members[member] = some
        paths = {}
        for split, given in here.items():
            file = f"{member}.jsonl" if split == "test" else f"{member}_{split}.jsonl"
            _write(made / file, given)
            paths[split] = str(place / file)
        about = f"{task.about} {of.replace('_', ' ')}.\n\n" if task.about else ""
        settings = _task(member, task, some[0], paths, about)
        if task.by_size is None:
            settings["tag"] = name
        _settings(made / f"{member}.yaml", settings)
    if task.of and task.by_size is not None:
        weighed = {"metric": "acc", "aggregation": "mean", "weight_by_size": task.by_size}
        group = {"group": name, "task": list(members), "aggregate_metric_list": [weighed]}
        _settings(made / f"{name}.yaml", {**group, "metadata": {"version": 2.0}})
    return sum(map(len, members.values()))


def _by_task(task: Task, path: str) -> dict[str, list[Row]]:
    """Returns the rows of a file by the task that they are of."""
    found: dict[str, list[Row]] = {}

    def made(row: Row) -> Row:
        of = rows.text(row, task.of) if task.of else ""
        if not re.fullmatch(r"[\w.-]*", of):
            raise WrongRow(f"field {task.of!r} is {of!r}, takes letters, digits, '_', '.', '-'")
        found.setdefault(of, []).append(task.made(row))
        return row

    for _ in rows.read(path, made):
        pass
    if not found:
        raise DataError(f"{path}: has 0 rows, takes at least 1")
    return found


def _task(name: str, task: Task, row: Row, paths: dict[str, str], about: str) -> dict[str, Any]:
    """Returns the harness's settings of a task whose rows are like one."""
    kinds = {
        rows.CHOICES: ("multiple_choice", "query", "gold", "choices"),
        rows.CONTEXTS: ("multiple_choice", "gold", "target", "contexts"),
        rows.TARGET: ("loglikelihood", "query", "target", None),
    }
    kind, text, target, choice = next(
        how for fields, how in kinds.items() if all(field in row for field in fields)
    )
    found = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": paths},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": text,
        "doc_to_target": target,
        "metric_list": list(task.metrics),
        "metadata": {"version": task.version},
    }
    if task.delimiter != " ":  # which is the harness's own
        found["target_delimiter"] = task.delimiter
    if choice:
        found["doc_to_choice"] = choice
    if about:
        found["description"] = about
    if "dev" in paths:
        found |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    return found


def _find(source: pathlib.Path, name: str) -> str | None:
    paths = (str(source / (name + suffix)) for suffix in _SUFFIXES)
    return next((path for path in paths if name and os.path.isfile(path)), None)


def _write(path: pathlib.Path, given: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in given:
            file.write(jsonlines.line(row))


def _settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
