"""Checkpoints of llama2.c, as Hugging Face would hold them.

Seven int32 (width, hidden width, layers, heads, key heads, vocabulary, length), then all arrays in
float32, each kind for all layers. A vocabulary below 0 says that the head is not the embedding.
Rows of queries and keys stand there for a rotation of neighbours.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from recursia.convert.gguf import halves, unchanged
from recursia.errors import CheckpointError

_HEADER = 7 * 4  # bytes


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file under the names of Hugging Face, float32.

    Attributes:
      settings: what `config.json` would say.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the header.

        Raises:
          CheckpointError: if the file has another size than its header says.
        """
        try:
            self._path, self._all = path, np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None
        if len(self._all) < _HEADER:
            raise CheckpointError(f"{path}: has {len(self._all)} bytes, takes {_HEADER} and more")
        width, hidden, layers, heads, keys, vocabulary, length = np.frombuffer(
            self._all, np.int32, 7
        ).tolist()
        numbers = (width, hidden, layers, heads, keys, abs(vocabulary), length)
        if not all(0 < number < 1 << 24 for number in numbers) or width % (2 * heads):
            raise CheckpointError(f"{path}: the header {numbers} is of no llama2.c checkpoint")
        if len(self._all) < (least := 4 * layers * width * (2 * width + 3 * hidden)):
            raise CheckpointError(f"{path}: is cut short: {len(self._all)} bytes of over {least}")
        self.settings: dict[str, Any] = {
            "model_type": "llama",
            "vocab_size": abs(vocabulary),
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": length,
            "tie_word_embeddings": vocabulary > 0,
        }
        self._places = self._layout(width, hidden, layers, width // heads * keys, length)
        wanted = max(place + 4 * math.prod(shape) for place, shape in self._places.values())
        if len(self._all) < wanted:
            raise CheckpointError(f"{path}: is cut short: {len(self._all)} bytes of {wanted}")

    def _layout(
        self, width: int, hidden: int, layers: int, keys: int, length: int
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Returns place in bytes and shape of every array."""
        vocabulary = self.settings["vocab_size"]
        by_layer = (
            ("input_layernorm", (width,)),
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (keys, width)),
            ("self_attn.v_proj", (keys, width)),
            ("self_attn.o_proj", (width, width)),
            ("post_attention_layernorm", (width,)),
            ("mlp.gate_proj", (hidden, width)),
            ("mlp.down_proj", (width, hidden)),
            ("mlp.up_proj", (hidden, width)),
        )
        found: dict[str, tuple[int, tuple[int, ...]]] = {
            "model.embed_tokens.weight": (_HEADER, (vocabulary, width))
        }
        place = _HEADER + 4 * vocabulary * width
        for name, shape in by_layer:
            for layer in range(layers):
                found[f"model.layers.{layer}.{name}.weight"] = place, shape
                place += 4 * math.prod(shape)
        found["model.norm.weight"] = place, (width,)
        place += 4 * width
        if not self.settings["tie_word_embeddings"]:
            place += 4 * length * (width // self.settings["num_attention_heads"])  # sines, cosines
            found["lm_head.weight"] = place, (vocabulary, width)
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        place, shape = self._places[name]
        unchanged(self._path, len(self._all))
        array = np.frombuffer(self._all, np.float32, math.prod(shape), place).reshape(shape)
        heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
        count = next((self.settings[of] for end, of in heads.items() if name.endswith(end)), 0)
        return halves(array, count) if count else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
