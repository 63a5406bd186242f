"""The fields of a configuration: where each stands, what it means, and what a typo meant."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from recursia import settings, typed
from recursia.architecture import Model
from recursia.errors import ConfigError
from recursia.meanings import meanings

# What other libraries call a field of this one.
_SYNONYMS = {
    "accumulation": "num_microbatches",
    "accumulation_steps": "num_microbatches",
    "batch": "batch_size",
    "beta1": "b1",
    "beta2": "b2",
    "clip": "clip_norm",
    "context": "seq_len",
    "context_length": "seq_len",
    "d_model": "embed_dim",
    "dim": "embed_dim",
    "experts": "num_experts",
    "grad_clip": "clip_norm",
    "gradient_accumulation_steps": "num_microbatches",
    "heads": "num_heads",
    "hidden_dim": "embed_dim",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "iterations": "num_steps",
    "layers": "num_layers",
    "length": "seq_len",
    "lr": "learning_rate",
    "max_steps": "num_steps",
    "precision": "dtype",
    "recursions": "num_recursions",
    "sequence_length": "seq_len",
    "steps": "num_steps",
    "vocab": "vocab_size",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "width": "embed_dim",
}


# Fields that had another name before.
_RENAMED = {
    f"{section}{name}": f"train.{name}"
    for section in ("", "model.")
    for name in ("remat", "remat_saves")
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      path: dotted, as it is typed after `--config.`.
      meaning: one sentence or more.
      type: in words.
      default: what it is where no one sets it, or "required".
      value: what it is here.
    """

    path: str
    meaning: str
    type: str
    default: Any
    value: Any


def fields(run: settings.Run, prefix: str = "") -> list[Field]:
    """Returns every field of a configuration, those of the kinds in force included, in order.

    Args:
      run: the configuration.
      prefix: a section or field, such as "optimizer" or "depth.kind"; empty takes all.

    Raises:
      ConfigError: if there is no such section or field.
    """
    found = list(_walk(run, ""))
    under = resolve(prefix, [field.path for field in found])
    of = [f for f in found if not under or f"{f.path}.".startswith(f"{under}.")]
    if not of:
        sections = list(dict.fromkeys(f.path.partition(".")[0] for f in found))
        raise ConfigError(
            f"{prefix}: no such field{near(under, sections, [f.path for f in found])}"
        )
    return of


def full(field: str) -> str:
    """Returns a dotted field with its section: a field of the model may be named without."""
    first, names = field.partition(".")[0], lambda cls: [f.name for f in dataclasses.fields(cls)]
    is_short = first not in names(settings.Run) and first in names(Model)
    return f"model.{field}" if is_short else field


def resolve(field: str, known: Iterable[str]) -> str:
    """Returns the dotted path of a field, which may be named without the parts that it stands in.

    Args:
      field: as typed: a field of the model without its section, and a field of a part within a
        part without the inner one (`block.num_heads` for `model.block.mixer.num_heads`).
      known: dotted paths of the configuration; what none of them ends with stays as it is.

    Raises:
      ConfigError: if several parts have such a field, with the full names.
    """
    place, known = full(field), tuple(known)
    if any(f"{path}.".startswith(f"{place}.") for path in known):
        return place
    parts = (path.removesuffix("kind") for path in known if path.endswith(".kind"))
    part = max((part for part in parts if place.startswith(part)), key=len, default="")
    end = f".{place.removeprefix(part)}"
    found = [path for path in known if part and path.startswith(part) and path.endswith(end)]
    if len(found) > 1:
        raise ConfigError(f"config.{field}: may be {' or '.join(found)}; give it by that name")
    return found[0] if found else place


def is_part(name: str, hint: Any) -> bool:
    """Returns whether a field names a module by its kind."""
    return hint is settings.KINDS.get(name)


def tree(cls: type, values: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted paths of all fields that a tree of values may have, given its kinds."""
    values = values if isinstance(values, Mapping) else {}
    defaults = {field.name: default_kind(field) for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in defaults:
        hint, inner = hints[name], values.get(name)
        if is_part(name, hint):
            yield f"{path}{name}.kind"
            kind = inner.get("kind") if isinstance(inner, Mapping) else inner
            kind = defaults[name] if kind is None else kind
            if str(kind) in settings.kinds(name):
                of: Any = settings.kind_config(name, str(kind))
                yield from tree(of, inner, f"{path}{name}.")
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from tree(hint, inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def default_kind(field: dataclasses.Field) -> str:
    """Returns the kind that a section has which names none; "" where it must."""
    default = _default(field)
    return settings.kind(default) if dataclasses.is_dataclass(default) else ""


def near(field: str, siblings: Sequence[str], known: Sequence[str]) -> str:
    """Returns the end of a refusal: which field may be meant, and which there are beside it.

    Args:
      field: dotted, of which the last part is wrong.
      siblings: names that would be right there.
      known: dotted paths of the whole configuration, which are searched too.
    """
    if field in _RENAMED:
        return f"; it is now {_RENAMED[field]}"
    name = field.rpartition(".")[2]
    wanted = _SYNONYMS.get(name, name)
    lasts = [path.rpartition(".")[2] for path in known]
    section = field.removesuffix(name)
    meant = [f"{section}{wanted}"] if wanted in siblings else []
    meant = meant or [path for path, last in zip(known, lasts, strict=True) if last == wanted]
    meant = meant or difflib.get_close_matches(name, siblings, n=1)
    for close in [] if meant else difflib.get_close_matches(name, lasts, n=1, cutoff=0.75):
        meant = [path for path, last in zip(known, lasts, strict=True) if last == close]
    there = f"is {', '.join(siblings)}"
    asked = " or ".join(map(repr, meant[:3]))
    return f"; did you mean {asked}? There {there}" if meant else f"; there {there}"


def _walk(config: Any, path: str) -> Iterator[Field]:
    cls = type(config)
    hints, about = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    for field in dataclasses.fields(cls):
        value, meaning = getattr(config, field.name), about.get(field.name, "")
        default = _default(field)
        place = f"{path}{field.name}"
        if is_part(field.name, hints[field.name]):
            default = default_kind(field) or default
            kinds = " or ".join(map(repr, settings.kinds(field.name)))
            yield Field(f"{place}.kind", meaning, kinds, default, settings.kind(value))
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{place}.")
        else:
            yield Field(place, meaning, typed.describe(hints[field.name]), default, value)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return "required" if field.default_factory is dataclasses.MISSING else field.default_factory()
