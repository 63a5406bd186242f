"""Requests in a file, served in slots: one JSON object a line, in and out.

A request has a `prompt`, and may have an `id` and what else `_FIELDS` names: what it does not say
is as the command says. What it gets is what the same prompt gets alone, with the same seed.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from recursia import console, jsonlines, safely
from recursia.data import files
from recursia.errors import ConfigError, DataError
from recursia.generate.continuation import Continuation, Stops
from recursia.generate.engine import Engine, Request, Served
from recursia.generate.prompts import Way, key
from recursia.generate.sampling import Sampling
from recursia.generate.scheduler import Discipline
from recursia.workdir.trained import Trained

_SAMPLING = {field.name: None for field in dataclasses.fields(Sampling)}.keys()
_FIELDS = ("prompt", "id", "num_tokens", "stop", "seed", *_SAMPLING)
_TYPES: dict[str, Any] = {"prompt": str, "num_tokens": int, "seed": int, "top_k": int}
_TYPES |= {"temperature": (int, float), "top_p": (int, float), "min_p": (int, float)}
_WORDS = {str: "a text", int: "an integer", (int, float): "a number"}
_MOST = 2**31 - 1
_RANGES = {"num_tokens": (1, _MOST), "seed": (0, _MOST)}


@dataclasses.dataclass
class Asked:
    """A line of the file.

    Attributes:
      name: the request's id, or the number of its line.
      prompt: as it stands there.
      way: how it is continued.
      text: after the prompt.
    """

    name: Any
    prompt: str
    way: Way
    text: Continuation

    @property
    def request(self) -> Request:
        """What the engine is asked."""
        draws = key(self.way.seed, self.text.prompt)
        return Request(self.text.prompt, self.way.num_tokens, self.way.sampling, draws)

    def answer(self, served: Served) -> dict[str, Any]:
        """Returns the line of a request that has ended."""
        return {
            "id": self.name,
            "prompt": self.prompt,
            "text": self.text.text,
            "tokens": self.text.tokens,
            "finish_reason": self.text.finish_reason,
            "mean_recursions": served.mean_recursions,
        }


def read(path: pathlib.Path, trained: Trained, way: Way) -> list[Asked]:
    """Returns the requests of a file; empty lines are skipped.

    Args:
      path: a JSON Lines file.
      trained: the model.
      way: how requests are continued that do not say so.

    Raises:
      DataError: if the file cannot be read or has no request, or for a line that is none.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise files.unreadable(str(path), error) from None
    asked = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                asked.append(_asked(line, number, trained, way))
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None
    if not asked:
        raise DataError(f'{path}: has no request; give a line such as {{"prompt": "It was"}}')
    return asked


def _asked(line: str, number: int, trained: Trained, way: Way) -> Asked:
    """Returns the request of a line.

    Raises:
      ValueError: if it is none.
    """
    fields = _fields(line)
    way = dataclasses.replace(
        way,
        num_tokens=fields.get("num_tokens", way.num_tokens),
        seed=fields.get("seed", way.seed),
        sampling=dataclasses.replace(
            way.sampling, **{n: fields[n] for n in _SAMPLING & fields.keys()}
        ),
        stops=_stops(fields["stop"]) if "stop" in fields else way.stops,
    )
    ids, window = trained.tokenizer.encode(fields["prompt"]), trained.run.train.seq_len
    if not 0 < len(ids) <= window:
        raise ValueError(
            f"prompt: has {len(ids)} tokens, takes 1 to {window} (train.seq_len, the context of "
            f"the model); {'shorten it' if ids else 'give text'}"
        )
    text = Continuation(trained.tokenizer, ids, way.stops, way.num_tokens)
    return Asked(fields.get("id", number), fields["prompt"], way, text)


def _fields(line: str) -> dict[str, Any]:
    """Returns the fields of a line, of the right types."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(fields, dict) or "prompt" not in fields:
        raise ValueError('is no request; give an object such as {"prompt": "It was"}')
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise ValueError(f"has no field {unknown[0]!r}; takes {', '.join(_FIELDS)}")
    for name in _TYPES.keys() & fields.keys():
        value, kind = fields[name], _TYPES[name]
        if not isinstance(value, kind) or isinstance(value, bool) or value != value:
            raise ValueError(f"{name}: got {value!r}, takes {_WORDS[kind]}")
    for name, (least, most) in _RANGES.items():
        if not least <= fields.get(name, least) <= most:
            raise ValueError(f"{name}: got {fields[name]}, takes {least} to {most}")
    return fields


def _stops(given: Any) -> Stops:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop: got {given!r}, takes a text or a list of texts, none empty")
    return Stops(tuple(texts))


def serve(
    trained: Trained, asked: list[Asked], num_slots: int, discipline: Discipline
) -> Iterator[dict[str, Any]]:
    """Returns the line of each request as it ends.

    Args:
      trained: the model.
      asked: of `read`.
      num_slots: of the batch, at most.
      discipline: how slots are refilled.

    Raises:
      ConfigError: if slots cannot serve the model.
    """
    try:
        engine = Engine(
            trained.params,
            trained.model,
            num_slots=min(num_slots, len(asked)),
            window=trained.run.train.seq_len,
            end_of_text=trained.tokenizer.end_of_text,
            discipline=discipline,
        )
    except ValueError as error:
        raise ConfigError(f"--requests: {error}; continue them by --prompt") from None

    return _answers(engine, asked)


def _answers(engine: Engine, asked: list[Asked]) -> Iterator[dict[str, Any]]:
    def is_over(served: Served) -> bool:
        text = asked[served.index].text
        text.take(served.tokens[-1])
        return text.is_over

    for served in engine.serve([each.request for each in asked], is_over):
        own = asked[served.index]
        if served.has_ended:
            own.text.take(None)
        yield own.answer(served)


def write(answers: Iterator[dict[str, Any]], count: int, output: pathlib.Path | None) -> None:
    """Writes lines as they come.

    Args:
      answers: of `serve`.
      count: of them.
      output: a new file; None is standard output.

    Raises:
      ConfigError: if the file is there already, or cannot be made.
      StorageError: if a line cannot be written; those before it stay.
    """
    with _opened(output) as out, console.bar("serving", count, "requests") as advance:
        for answer in answers:
            _put(out, jsonlines.line(answer), output)
            advance(1)


def _put(out: TextIO, line: str, output: pathlib.Path | None) -> None:
    try:
        out.write(line)
        out.flush()
    except OSError as error:
        if output is None:
            raise
        with contextlib.suppress(OSError):  # of what it still holds
            out.close()
        raise safely.unwritten(f"--output={output}", error) from None


@contextlib.contextmanager
def _opened(output: pathlib.Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        out = output.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"--output={output}: is there already; give a new file") from None
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be made ({error.strerror})") from None
    with out:
        yield out
