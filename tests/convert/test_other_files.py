"""Files of other programs: llama2.c, GGUF, and the authors' own checkpoints."""

import json
import pathlib
import struct

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia.convert import arrival, llama2c, safetensors, vocabularies
from recursia.convert.gguf import halves
from recursia.convert.reference import aliases, under
from recursia.errors import CheckpointError, ConfigError, DataError
from tests.helpers.checkpoints import LLAMA, place, read, words, write
from tests.helpers.refusals import refused
from tests.helpers.tiny import is_equal

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PUBLISHED = (
    "recursive_cycle",
    "recursive_sequence",
    "mor_expert",
    "mor_expert_unshared_attention",
    "mor_token",
    "moeut_g2",
    "huginn",
)


def neighbours(rows, heads):
    """Undoes `halves`."""
    split = rows.reshape(heads, 2, -1, rows.shape[-1])
    return split.swapaxes(1, 2).reshape(rows.shape)


def as_llama2c(arrays, settings=LLAMA):
    """Returns a checkpoint of llama2.c with the arrays of a tied Llama."""
    s, layers = settings, range(settings["num_hidden_layers"])
    heads = {"q_proj": s["num_attention_heads"], "k_proj": s["num_key_value_heads"]}
    header = (s["hidden_size"], s["intermediate_size"], len(layers), *heads.values())
    raw = struct.pack("7i", *header, s["vocab_size"], s["max_position_embeddings"])
    raw += arrays["model.embed_tokens.weight"].tobytes()
    order = ("input_layernorm", *(f"self_attn.{c}_proj" for c in "qkvo"))
    order += ("post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
    for name in order:
        for layer in layers:
            array = arrays[f"model.layers.{layer}.{name}.weight"]
            count = heads.get(name.rpartition(".")[2])
            raw += (neighbours(array, count) if count else array).tobytes()
    return raw + arrays["model.norm.weight"].tobytes()


def test_rows_of_neighbours_and_of_halves_are_the_same_rotation():
    rows = np.arange(24.0).reshape(12, 2)
    assert np.array_equal(halves(neighbours(rows, 3), 3), rows)
    assert halves(np.arange(4.0)[:, None], 1)[:, 0].tolist() == [0, 2, 1, 3]


def test_llama2c_is_the_llama_that_it_was_made_of(tmp_path):
    settings = {**LLAMA, "tie_word_embeddings": True}
    arrays = write(tmp_path / "hf", settings)
    (tmp_path / "model.bin").write_bytes(as_llama2c(arrays))
    found = arrival.find(tmp_path / "model.bin")
    config, weights = read(tmp_path / "hf")
    assert found.config == config
    assert is_equal(found.params(place(config)), weights)
    (tmp_path / "cut.bin").write_bytes(as_llama2c(arrays)[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        llama2c.Arrays(tmp_path / "cut.bin")


def write_vocabulary(path):
    """Writes a vocabulary of llama2.c; returns its number of pieces."""
    pieces = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [("ab", 0.0), ("bc", -1.0), (" a", -2.0), ("abc", -3.0)]
    pieces += [(letter, -9.0) for letter in " abc"]
    raw = struct.pack("i", 8)
    for text, score in pieces:
        raw += struct.pack("<fi", score, len(text.encode())) + text.encode()
    path.write_bytes(raw)
    return len(pieces)


def test_a_vocabulary_with_scores_merges_the_best_first(tmp_path):
    path = tmp_path / "vocabulary.bin"
    count = write_vocabulary(path)
    library = vocabularies.by_scores(path, count)
    spelt = lambda text: library.encode(text, add_special_tokens=False).tokens
    space = vocabularies.SPACE
    assert spelt("abc") == [space, "abc"]  # "ab" first, which " a" would have had
    assert spelt("bca") == [space, "bc", "a"]
    assert spelt("d\n") == [space, "<0x64>", "<0x0A>"]
    assert library.decode(library.encode("abc d", add_special_tokens=False).ids) == "abc d"
    with pytest.raises(DataError, match=f"{count} of 512"):
        vocabularies.by_scores(path, 512)


def test_the_one_vocabulary_beside_a_file_of_llama2c_is_its(tmp_path):
    count = write_vocabulary(tmp_path / "other.bin")
    settings = {**LLAMA, "tie_word_embeddings": True, "vocab_size": count}
    (tmp_path / "model.bin").write_bytes(as_llama2c(write(tmp_path / "hf", settings), settings))
    found = arrival.find(tmp_path / "model.bin")
    with refused(ConfigError, "model.bin", "0 files tok*.bin"):
        arrival.tokenizer(found)
    write_vocabulary(tmp_path / "tok.bin")
    assert arrival.tokenizer(found).decode(arrival.tokenizer(found).encode("abc d")) == "abc d"
    write_vocabulary(tmp_path / "tok2.bin")
    with refused(ConfigError, "2 files tok*.bin"):
        arrival.tokenizer(found)


def test_bytes_have_their_own_ids_in_the_librarys_format():
    library = vocabularies.of_bytes(257, 256)
    text = "\x00 Äé\n~\xa0"
    ids = library.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode()) and library.decode(ids) == text
    assert library.token_to_id("<|endoftext|>") == 256


def test_gguf_is_the_llama_that_it_was_made_of(tmp_path):
    settings = {**LLAMA, "tie_word_embeddings": True, "vocab_size": 40}
    arrays = write(tmp_path / "hf", settings)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(3)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    names = ["<|endoftext|>", *"0123456789abcdefghijklmnopqrstuvwxyz", "ab", "abc", "<>"]
    writer.add_token_list(names)
    writer.add_token_types([3, *[1] * 39])
    writer.add_token_merges(["a b", "ab c"])
    turn = {v: k for k, v in {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }.items()}  # fmt: skip
    for name, array in arrays.items():
        if not name.startswith("model.layers."):
            theirs = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
            writer.add_tensor(f"{theirs[name]}.weight", array)
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
        array = neighbours(array, heads) if heads else array
        writer.add_tensor(f"blk.{layer}.{turn[part]}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = arrival.find(tmp_path / "model.gguf")
    config, weights = read(tmp_path / "hf")
    assert found.config == config
    assert is_equal(found.params(place(config)), weights)
    tokenizer = arrival.tokenizer(found, "", "")
    assert tokenizer.encode("abc12") == [names.index(each) for each in ("abc", "1", "2")]
    raw = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(raw[: len(raw) // 3])
    with pytest.raises(CheckpointError, match="cannot be read"):
        arrival.find(tmp_path / "cut.gguf")


def published(name, folder, has_aliases):
    """Writes the weights of a golden file as a checkpoint; shared ones once."""
    file = np.load(GOLDEN / f"{name}.npz")
    shared = aliases(file)
    named = {n: a for n, a in under(file, "param/").items() if n not in shared}
    safetensors.write(folder, {n: a.shape for n, a in named.items()}, named.items())
    path = folder / safetensors.FILE
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = {"format": "pt", **(shared if has_aliases else {})}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])
    settings = json.loads(str(file["config"]))
    if name == "huginn":
        free, trained = map(int, file["num_steps"])
        settings |= {"mean_recurrence": free + trained, "mean_backprop_depth": max(trained, 1)}
    (folder / "config.json").write_text(json.dumps(settings))
    words().save(str(folder))
    (folder / "tokenizer_config.json").write_text("{}")
    return file


@pytest.mark.few(2)
@pytest.mark.parametrize("has_aliases", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_authors_checkpoint_gives_the_authors_logits(name, has_aliases, tmp_path):
    file = published(name, tmp_path, has_aliases)
    found = arrival.find(tmp_path)
    params = found.params(place(found.config))
    tokens = jnp.asarray(np.asarray(file["tokens"]))[:, : file["logits"].shape[1]]
    state = jnp.asarray(file["initial_state"]) if name == "huginn" else None
    out = model.apply(params, tokens, found.config, mode="eval", state=state)
    logits = np.asarray(model.logits(params, out.hidden, found.config))
    np.testing.assert_allclose(logits, file["logits"], rtol=0, atol=2e-5)
    assert arrival.tokenizer(found, "", "").vocab_size <= found.config.vocab_size


def test_an_authors_checkpoint_without_an_array_is_refused(tmp_path):
    published("moeut_g2", tmp_path, True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "group_size": 3}))
    with pytest.raises(CheckpointError, match=r"attention\.v"):
        arrival.find(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "n_tokens": 62}))
    with pytest.raises(CheckpointError, match="62"):
        arrival.find(tmp_path)
