"""GGUF files of Llama models, as Hugging Face would hold them: settings, arrays and vocabulary.

Quantised arrays are made float32 one by one, when they are asked for. Rows of queries and keys
stand there for a rotation of neighbours, and are put back for one of halves. Needs the `gguf`
package, an optional extra.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from recursia.convert import vocabularies
from recursia.errors import CheckpointError, ConfigError, UserError

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file under the names of Hugging Face, float32.

    Attributes:
      settings: what `config.json` would say.
    """

    def __init__(self, path: pathlib.Path):
        """Reads everything but arrays.

        Raises:
          ConfigError: without the `gguf` package, or for another architecture.
          CheckpointError: if the file is damaged or says too little.
        """
        try:
            import gguf
        except ImportError:
            raise ConfigError(
                f"{path}: reading GGUF needs the gguf package; pip install 'recursia[gguf]'"
            ) from None
        self._path, self._dequantize = path, gguf.quants.dequantize
        with _readable(path):
            reader = _whole(gguf.GGUFReader)(path)
            self._size = len(reader.data)
            self._fields = {name: field.contents() for name, field in reader.fields.items()}
            self._tensors = {_renamed(tensor.name): tensor for tensor in reader.tensors}
            self.settings = self._settings()

    def _settings(self) -> dict[str, Any]:
        if (kind := self._field("general.architecture")) != "llama":
            raise ConfigError(
                f"{self._path}: architecture {kind!r} is not read from GGUF; 'llama' is"
            )
        if (scaling := self._fields.get("llama.rope.scaling.type", "none")) != "none":
            raise ConfigError(f"{self._path}: rope scaling {scaling!r} is not read from GGUF")
        heads = int(self._field("llama.attention.head_count"))
        width = int(self._field("llama.embedding_length"))
        return {
            "model_type": "llama",
            "vocab_size": len(self._field("tokenizer.ggml.tokens")),
            "hidden_size": width,
            "intermediate_size": int(self._field("llama.feed_forward_length")),
            "num_hidden_layers": int(self._field("llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self._fields.get("llama.attention.head_count_kv", heads)),
            "head_dim": int(self._fields.get("llama.attention.key_length", width // heads)),
            "rope_theta": float(self._fields.get("llama.rope.freq_base", 10_000.0)),
            # Stored in float32: the shortest number that rounds to it is the one that was meant.
            "rms_norm_eps": _shortest(self._field("llama.attention.layer_norm_rms_epsilon")),
            "max_position_embeddings": int(self._field("llama.context_length")),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    def _field(self, name: str) -> Any:
        if name not in self._fields:
            raise CheckpointError(f"{self._path}: has no {name}; fetch it again")
        return self._fields[name]

    def tokenizer(self) -> Tokenizer:
        """Returns the vocabulary inside.

        Raises:
          DataError, ConfigError: for a kind that is not read.
        """
        kind = self._field("tokenizer.ggml.model")
        if kind != "gpt2":
            raise ConfigError(
                f"{self._path}: a tokenizer of kind {kind!r} is not read; give --tokenizer=FILE"
            )
        return vocabularies.byte_level(
            self._field("tokenizer.ggml.tokens"),
            self._field("tokenizer.ggml.token_type"),
            self._field("tokenizer.ggml.merges"),
            self._fields.get("tokenizer.ggml.pre", "default"),
            str(self._path),
        )

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
        count = next((self.settings[of] for end, of in heads.items() if name.endswith(end)), 0)
        unchanged(self._path, self._size)
        with _readable(self._path):
            array = self._dequantize(tensor.data, tensor.tensor_type)
            array = np.asarray(array, np.float32).reshape(tensor.shape.tolist()[::-1])
            return halves(array, count) if count else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _whole(reader: Any) -> Any:
    """Returns the library's class of readers, which refuses to read behind the end of a file.

    By itself it takes what is behind the end for nothing, as often as a damaged count says.
    """

    class Whole(reader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **how: Any) -> Any:
            end, size = int(offset) + np.dtype(dtype).itemsize * int(count), len(self.data)
            if end > size:
                raise ValueError(f"a field ends at byte {end}, the file at {size}")
            return super()._get(offset, dtype, count, *order, **how)

    return Whole


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Makes one line of what a damaged file gives: the library raises no narrower class."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({said}); fetch it again") from None


def unchanged(path: pathlib.Path, size: int) -> None:
    """Refuses a mapped file that has shrunk, of which a read ends the process with SIGBUS.

    Args:
      path: of the file.
      size: in bytes, when it was mapped.

    Raises:
      CheckpointError: if it has fewer, or is gone.
    """
    try:
        now = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if now < size:
        raise CheckpointError(f"{path}: has shrunk from {size} to {now} bytes; fetch it again")


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows of queries or keys for a rotation of halves, from those of neighbours."""
    split = rows.reshape(heads, -1, 2, rows.shape[-1])
    return split.swapaxes(1, 2).reshape(rows.shape)


def _renamed(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.partition(".")
    if block != "blk" or part not in _LAYER:
        return name
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}"


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))
