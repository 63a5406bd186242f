"""In, out and in again is equal to the bit; so are one file and many."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model, params
from recursia.convert import arrival, export, families, huggingface, names, safetensors
from recursia.depth.token_choice import TokenChoice
from tests.helpers.checkpoints import LLAMA, OURO, place, read, words, write
from tests.helpers.tiny import draw, is_equal, tiny

FAMILIES = {
    "llama": LLAMA,
    "llama, other scales": {
        **LLAMA,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 6, "sliding_window": 4},
    "ouro": {**OURO, "early_exit_threshold": 0.5},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_comes_back_as_it_went(name, tmp_path):
    arrays = write(tmp_path / "in", FAMILIES[name])
    config, weights = read(tmp_path / "in")
    (tmp_path / "out").mkdir()
    export.export(config, weights, words(), name.split(",")[0], 32, tmp_path / "out")
    again, same = read(tmp_path / "out")
    assert families.comparable(again) == families.comparable(config)
    assert is_equal(weights, same)
    back = safetensors.read(tmp_path / "out")
    assert set(back) == set(arrays)
    less_one = name == "gemma2"  # adding one rounds what the first file held
    for key, array in arrays.items():
        assert np.array_equal(back[key], array) or (less_one and key.endswith("norm.weight"))


@pytest.mark.parametrize("kind", ["tied", "routed"])
def test_our_own_form_comes_back_as_it_went(kind, tmp_path):
    config = tiny(sharing_="middle_cycle", kv="first_recursion")
    if kind == "routed":
        config = dataclasses.replace(config, depth=TokenChoice(3, balancing="loss_free"))
    weights = draw(config)
    export.export(config, weights, words(), "recursive", 32, tmp_path)
    found = arrival.find(tmp_path)
    assert found.config == config
    assert is_equal(found.params(place(config)), weights)
    stored = sum(array.size for array in safetensors.read(tmp_path).values())
    assert stored == params.count(model.specs(config))  # nothing shared is written twice
    assert arrival.tokenizer(found, "", "").encode("abc") == words().encode("abc")


def test_several_files_hold_what_one_does(tmp_path):
    one = write(tmp_path / "one", LLAMA)
    write(tmp_path / "many", LLAMA, shard_bytes=4000)
    index = json.loads((tmp_path / "many" / safetensors.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 3
    found = safetensors.read(tmp_path / "many")
    assert set(found) == set(one) and all(np.array_equal(found[n], one[n]) for n in one)
    assert is_equal(read(tmp_path / "one")[1], read(tmp_path / "many")[1])


def test_halves_are_read_as_float32(tmp_path):
    arrays = write(tmp_path, LLAMA)
    low = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    raw, header, place_ = b"", {}, 0
    for name, array in low.items():
        end = place_ + array.nbytes
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [place_, end],
        }
        raw, place_ = raw + array.tobytes(), end
    encoded = json.dumps(header).encode()
    contents = len(encoded).to_bytes(8, "little") + encoded + raw
    (tmp_path / safetensors.FILE).write_bytes(contents)
    _, weights = read(tmp_path)
    table = weights["embed"]["table"]
    assert table.dtype == jnp.float32
    assert np.array_equal(table, low["model.embed_tokens.weight"].astype(np.float32))


def test_an_array_is_not_read_before_it_is_asked_for(tmp_path):
    """A layer's array is a view of the file, and so is ours of it."""
    write(tmp_path, LLAMA)
    _, config = huggingface.model_of(LLAMA)
    arrays = safetensors.read(tmp_path)
    for each in names.places(config, "llama"):
        ours = each.read(arrays[each.name])
        assert not ours.flags.owndata and ours.shape == each.ours


def test_exported_parameters_are_counted():
    """What a family adds is in the closed forms: biases, norms of heads, norms after branches."""
    for settings in FAMILIES.values():
        family, config = huggingface.model_of(settings)
        theirs = sum(int(np.prod(each.shape)) for each in names.places(config, family))
        assert theirs == params.count(model.specs(config))


def test_what_a_file_does_not_say_is_what_transformers_takes():
    bare = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    config = huggingface.model_of({**bare, "model_type": "gemma2"})[1]
    mixer = config.block.mixer
    assert (mixer.head_dim, mixer.num_kv_heads, mixer.score_cap) == (256, 4, 50.0)
    assert (config.embed.logit_cap, config.embed.is_tied) == (30.0, True)
    assert config.schedule.seen.tolist() == [4096, 0, 4096]
    assert huggingface.model_of(bare)[1].block.mixer.num_kv_heads == 4
    assert huggingface.model_of({**bare, "model_type": "ouro"})[1].schedule.num_recursions == 4
