"""The fields of a configuration: their paths, meanings and types, and suggestions for typos."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from recursia import kinds, settings, typed
from recursia.architecture import Model
from recursia.errors import ConfigError
from recursia.meanings import meanings

# Names that other libraries use for a field of this one.
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


# Fields that were renamed, by their former paths.
_RENAMED = {
    f"{section}{name}": f"train.{name}"
    for section in ("", "model.")
    for name in ("remat", "remat_saves")
} | {"log.tensorboard": "an entry of log.sinks"}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      path: dotted, as typed after `--config.`.
      meaning: one sentence or more.
      type: in words.
      default: its default, or "required".
      value: its value in this configuration.
    """

    path: str
    meaning: str
    type: str
    default: Any
    value: Any


def fields(run: settings.Run, prefix: str = "") -> list[Field]:
    """Returns every field of a configuration in order, with the fields of its kinds.

    Args:
      run: the configuration.
      prefix: a section or field, such as "optimizer" or "depth.kind"; empty takes all.

    Raises:
      ConfigError: if there is no such section or field.
    """
    every = list(_walk(run, ""))
    paths = [field.path for field in every]
    under = resolve(prefix, paths)
    selected = [f for f in every if not under or f"{f.path}.".startswith(f"{under}.")]
    if not selected:
        sections = list(dict.fromkeys(path.partition(".")[0] for path in paths))
        raise ConfigError(f"{prefix}: no such field{near(under, sections, paths)}")
    return selected


def full(field: str) -> str:
    """Returns a dotted field with its section, which a field of the model may omit."""
    first = field.partition(".")[0]
    is_field_of = lambda cls: any(first == field.name for field in dataclasses.fields(cls))
    return f"model.{field}" if is_field_of(Model) and not is_field_of(settings.Run) else field


def resolve(field: str, known: Iterable[str]) -> str:
    """Returns the full dotted path of a field that may be typed by a short name.

    Args:
      field: as typed. A field of the model may omit `model`, and a field of a kind within a kind
        may omit the inner one: `block.num_heads` is `model.block.mixer.num_heads`.
      known: dotted paths of the configuration; a field that none of them ends with is returned as
        it is, with its section.

    Raises:
      ConfigError: if several paths match; the message lists them.
    """
    place, known = full(field), tuple(known)
    if any(f"{path}.".startswith(f"{place}.") for path in known):
        return place
    owners = (path.removesuffix("kind") for path in known if path.endswith(".kind"))
    owner = max((owner for owner in owners if place.startswith(owner)), key=len, default="")
    end = f".{place.removeprefix(owner)}"
    matches = [path for path in known if owner and path.startswith(owner) and path.endswith(end)]
    if len(matches) > 1:
        raise ConfigError(f"config.{field}: may be {' or '.join(matches)}; give the full name")
    return matches[0] if matches else place


def names_a_kind(name: str, hint: Any) -> bool:
    """Returns whether a field names a module by its kind, or may."""
    return name in kinds.BASES and kinds.BASES[name] in (hint, *typing.get_args(hint))


def tree(cls: type, values: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted paths of all fields that a tree of values of these kinds may have."""
    values = values if isinstance(values, Mapping) else {}
    defaults = {field.name: default_kind(field) for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in defaults:
        hint, inner = hints[name], values.get(name)
        if names_a_kind(name, hint):
            yield f"{path}{name}.kind"
            kind = inner.get("kind") if isinstance(inner, Mapping) else inner
            kind = defaults[name] if kind is None else kind
            config_class: Any = None
            with contextlib.suppress(ConfigError):  # `sections.build` raises it again
                config_class = kinds.config_class(name, str(kind))
            if config_class:
                yield from tree(config_class, inner, f"{path}{name}.")
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from tree(hint, inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def default_kind(field: dataclasses.Field) -> str:
    """Returns the kind of a section that names none; "" if the kind is required."""
    default = _default(field)
    is_kind = default is None or dataclasses.is_dataclass(default)
    return kinds.kind_of(default) if is_kind else ""


def near(field: str, siblings: Sequence[str], known: Sequence[str]) -> str:
    """Returns the end of an error message: the field probably meant, and the fields of its section.

    Args:
      field: dotted path whose last name does not exist.
      siblings: names of the fields in its section.
      known: dotted paths of all fields of the configuration, which are searched too.
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
    beside = ", ".join(siblings)
    asked = " or ".join(map(repr, meant[:3]))
    return f"; did you mean {asked}? Fields are {beside}" if meant else f"; fields are {beside}"


def _walk(config: Any, path: str) -> Iterator[Field]:
    cls = type(config)
    hints, by_name = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    for field in dataclasses.fields(cls):
        value, meaning = getattr(config, field.name), by_name.get(field.name, "")
        default = _default(field)
        place = f"{path}{field.name}"
        if names_a_kind(field.name, hints[field.name]):
            default = default_kind(field) or default
            names = [*kinds.names(field.name), *[kinds.NONE] * kinds.takes_none(field)]
            choices = " or ".join([*map(repr, names), kinds.OWN])
            yield Field(f"{place}.kind", meaning, choices, default, kinds.kind_of(value))
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{place}.")
        elif not names_a_kind(field.name, hints[field.name]):
            yield Field(place, meaning, typed.describe(hints[field.name]), default, value)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return "required" if field.default_factory is dataclasses.MISSING else field.default_factory()
