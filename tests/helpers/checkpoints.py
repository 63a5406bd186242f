"""Checkpoints of other programs, tiny, written without them."""

import json
import pathlib

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from recursia import model
from recursia.convert import huggingface, loading, names, safetensors
from recursia.data.tokenizer import BPETokenizer

LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
OURO = {**LLAMA, "model_type": "ouro", "total_ut_steps": 2, "num_key_value_heads": 4}
WORDS = [*"abcdefghijklmnopqrstuvwxyz ", "</s>"]


def words(size: int = len(WORDS)) -> BPETokenizer:
    """Returns a tokenizer of letters, with an end of text."""
    named = [*WORDS, *(f"word{i}" for i in range(len(WORDS), size))][:size]
    library = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(named)}, "z"))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return BPETokenizer(library, "a test")


def place(config):
    """Returns where every parameter of a model goes: the one device here."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: here, model.specs(config))


def write(folder: pathlib.Path, settings: dict, seed: int = 0, **files) -> dict:
    """Writes a folder of a family with random arrays; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    family, config = huggingface.model_of(settings)
    rng = np.random.default_rng(seed)
    shapes = {each.name: each.shape for each in names.places(config, family)}
    arrays = {
        name: (0.3 * rng.normal(size=shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    safetensors.write(folder, shapes, arrays.items(), **files)
    tokenizer = words()
    tokenizer.save(str(folder))
    (folder / "tokenizer_config.json").write_text("{}")
    return arrays


def read(folder: pathlib.Path):
    """Returns our configuration and parameters of such a folder."""
    settings = json.loads((folder / "config.json").read_text())
    family, config = huggingface.model_of(settings)
    return config, loading.load(config, family, safetensors.read(folder), place(config))
