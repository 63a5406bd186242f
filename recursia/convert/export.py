"""A trained model as a Hugging Face folder: settings, safetensors, vocabulary, and code if needed.

As a family that transformers has, where there is such a model: one of fixed depth is unrolled, so
that it needs no code of ours. Else with its own names and a modelling file in plain PyTorch.
"""

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import recursia.config
import recursia.kinds
from recursia import model
from recursia.architecture import Model
from recursia.convert import families, names, safetensors, unroll, vocabularies
from recursia.convert.formats import OWN
from recursia.data.tokenizer import BPETokenizer, Tokenizer
from recursia.errors import ConfigError
from recursia.injection import Injection
from recursia.params import at

CODE = "modeling_recursia.py"
_READ = {  # kinds that the modelling file computes
    "block": (
        "pre_norm",
        "post_norm",
        "pre_post_norm",
        "sandwich_norm",
        "peri_norm",
        "parallel_norm",
    ),
    "mixer": ("grouped_query",),
    "feedforward": ("swiglu", "geglu", "relu", "gelu"),
    "embed": ("table",),
    "weights": ("tied", "lora"),
    "depth": ("fixed", "exit_gate", "expert_choice", "token_choice"),
}


def export(
    config: Model,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    format: str,
    length: int,
    folder: pathlib.Path,
) -> None:
    """Writes a model into an empty folder.

    Args:
      config: the model, with its size of vocabulary.
      params: its parameters.
      tokenizer: of its text.
      format: one of `formats.FORMATS`.
      length: tokens of a document, at most.
      folder: that exists.

    Raises:
      ConfigError: if the format has no such model.
    """
    if format == "recursive":
        settings, shapes, arrays = _own(config, params, length)
        shutil.copyfile(pathlib.Path(__file__).parent / "remote" / CODE, folder / CODE)
    else:
        settings, shapes, arrays = _family(config, params, format, length)
    end = {"eos_token_id": tokenizer.end_of_text, "bos_token_id": None}
    settings |= end
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(end, indent=2) + "\n")
    _write_tokenizer(tokenizer, length, folder)
    safetensors.write(folder, shapes, arrays)


Parts = tuple[dict[str, Any], dict[str, tuple[int, ...]], Iterator[tuple[str, np.ndarray]]]


def _family(config: Model, params: dict[str, Any], family: str, length: int) -> Parts:
    """Returns settings, shapes and arrays as a family has them."""
    is_looped = family == "ouro"
    dense = config if is_looped else unroll.unrolled(config)
    settings = families.config_of(dense, family, length)
    places = names.places(dense, family)
    by_name = {place.name: place for place in places}
    inner = [place for place in places if place.path.startswith("core.")]
    count = dense.schedule.num_blocks
    each = len(inner) // count
    outer = {path: leaf for path, leaf in names.leaves(params)}

    def layers() -> Iterator[dict[str, Any]]:
        if not is_looped:
            yield from unroll.layers(params, config)
            return
        for layer in range(count):
            yield dict(names.leaves(at(params["core"], layer)))

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        first, *rest = [place for place in places if not place.path.startswith("core.")]
        yield first.name, first.write(_host(outer[first.path]))
        for number, layer in enumerate(layers()):
            for place in inner[number * each : (number + 1) * each]:
                leaf = layer[place.path.removeprefix("core.")]
                yield place.name, place.write(_host(leaf))
        for place in rest:
            yield place.name, place.write(_host(outer[place.path]))

    return settings, {name: place.shape for name, place in by_name.items()}, arrays()


def _own(config: Model, params: dict[str, Any], length: int) -> Parts:
    """Returns the same with our names: every parameter once, however often it is used."""
    _check_own(config)
    specs = dict(names.leaves(model.specs(config)))
    shapes = {path: spec.shape for path, spec in specs.items()}
    settings = {
        "model_type": OWN,
        "architectures": ["RecursiaForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{CODE.removesuffix('.py')}.RecursiaConfig",
            "AutoModelForCausalLM": f"{CODE.removesuffix('.py')}.RecursiaForCausalLM",
        },
        "model": recursia.config.to_dict(config),
        "plan": plan(config),
        "shapes": {path: list(shape) for path, shape in shapes.items()},
        "mode": "causal",
        "vocab_size": config.vocab_size,
        "hidden_size": config.block.embed_dim,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": length,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
    }
    arrays = ((path, _host(leaf)) for path, leaf in names.leaves(params))
    return settings, shapes, arrays


def plan(config: Model) -> dict[str, Any]:
    """Returns the tables of a model's schedule as plain values."""
    schedule = config.schedule
    slots = [slot for slot in model.specs(config)["core"]]
    banks = [*slots, *(f"{slot}.keys" for slot, _ in config.key_weights), *config.depth.slots]
    return {
        "order": schedule.order,
        "num_recursions": schedule.num_recursions,
        "num_blocks": schedule.num_blocks,
        "steps": schedule.steps.tolist(),
        "entries": {bank: schedule.entry(bank).tolist() for bank in dict.fromkeys(banks)},
        "owners": schedule.owners.tolist(),
        "windows": schedule.seen.tolist(),
        "sources": [schedule.is_source(r) for r in range(schedule.num_recursions)],
        "key_weights": [f"{slot}.{name}" for slot, name in config.key_weights],
        **config.ends,
    }


def _check_own(config: Model) -> None:
    """Refuses what the modelling file does not compute."""
    values = recursia.config.to_dict(config)
    kinds = {
        "block": values["block"]["kind"],
        "mixer": values["block"]["mixer"]["kind"],
        "feedforward": values["block"]["feedforward"]["kind"],
        "embed": values["embed"]["kind"],
        "weights": values["weights"]["kind"],
        "depth": values["depth"]["kind"],
    }
    for field, kind in kinds.items():
        if kind not in _READ[field]:
            raise ConfigError(
                f"config.{field}: the modelling file has no {kind!r}; it has "
                f"{', '.join(_READ[field])}"
            )
    if config.schedule.is_cyclic:
        raise ConfigError(
            "config.kv.kv_sharing: the modelling file runs every step once, and here steps read "
            "the keys of later ones; take keys of earlier steps"
        )
    if config.schedule.replays:
        raise ConfigError(
            f"config.kv.reads: got {config.kv.reads!r}, and the modelling file replays no queries; "
            "it has 'keys_values'"
        )
    if waves := values["embed"]["fourier_dim"]:
        raise ConfigError(
            f"config.embed.fourier_dim: got {waves}, and the modelling file reads embeddings from "
            "a table; take a model with one"
        )
    if config.embed.position != "none":
        raise ConfigError(
            f"config.embed.position: got {config.embed.position!r}, and the modelling file adds no "
            "positions; it has 'none'"
        )
    if config.end_sizes:
        raise ConfigError(
            f"config.end_sizes: got {', '.join(name for name, _ in config.end_sizes)}, and the "
            "modelling file has one size of blocks; take a model without"
        )
    if (own := config.end_feedforward) is not None:
        raise ConfigError(
            f"config.end_feedforward: got {recursia.kinds.kind_of(own)!r}, and the modelling file "
            "has one kind of blocks; take a model without"
        )
    if families.comparable(config)["factors"] != (1.0, 1.0):
        raise ConfigError(
            "config.parameterisation: the modelling file multiplies neither branches nor logits; "
            "take 'standard', and embed.logit_scale 1"
        )
    if (copies := config.parallel.num_copies) > 1:
        raise ConfigError(
            f"config.parallel.num_copies: got {copies}, and the modelling file has one copy of the "
            "model; take 1"
        )
    if config.inject != Injection():
        raise ConfigError("config.inject: the modelling file injects nothing; take a model without")


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.device_get(leaf), np.float32)


def _write_tokenizer(tokenizer: Tokenizer, length: int, folder: pathlib.Path) -> None:
    """Writes the vocabulary in the library's format, and what transformers wants beside it."""
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(str(folder))
    else:
        library = vocabularies.of_bytes(tokenizer.vocab_size, tokenizer.end_of_text)
        library.save(str(folder / "tokenizer.json"))
    inside = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["id"]: token["content"] for token in inside["added_tokens"]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": ids[tokenizer.end_of_text],
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
