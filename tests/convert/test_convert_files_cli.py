"""`recursia convert huggingface` and `export`: in, out, and one line for what is bad.

A checkpoint that is not brought in, but evaluated where it lies, is refused alike.
"""

import json
import shutil

import numpy as np
import pytest

from recursia import cli
from recursia.convert import safetensors
from recursia.errors import CheckpointError
from tests.helpers.checkpoints import LLAMA, words, write
from tests.helpers.runs import hashes, is_equal, state_of

IN, OUT = ("convert", "huggingface"), ("convert", "export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with `hf`, a checkpoint, `run`, a run made of it, and a text."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "hf", LLAMA)
    (folder / "text.txt").write_text("the cat sat on the mat and the dog ran " * 4)
    assert bring(folder / "hf", folder / "run") == 0
    return folder


def bring(source, output, *more):
    return cli.main([*IN, f"--input={source}", f"--output={output}", "--seq_len=16", *more])


def refused(capsys, code, *said):
    err = capsys.readouterr().err.split("\n")
    lines = [line for line in err if line.startswith("recursia: ")]
    assert len(lines) == 1 and "Traceback" not in "".join(err)
    for each in said:
        assert str(each) in lines[0], lines[0]
    return code


@pytest.mark.slow
def test_a_run_is_scored_continued_and_written_again(folder, capsys):
    capsys.readouterr()
    run, text = f"--workdir={folder / 'run'}", f"--text={folder / 'text.txt'}"
    assert cli.main(["eval", run, text, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["nats_per_token"]
    for form in ("llama", "recursive"):
        assert cli.main([*OUT, run, f"--output={folder / form}", f"--format={form}"]) == 0
        assert bring(folder / form, folder / f"again_{form}") == 0
        before, after = state_of(folder / "run", 0), state_of(folder / f"again_{form}", 0)
        assert is_equal(before, after)
        capsys.readouterr()
        assert cli.main(["eval", f"--workdir={folder / f'again_{form}'}", text, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["nats_per_token"] == first
    prompt = ["generate", run, "--prompt=the", "--num_tokens=3"]
    assert cli.main(prompt) == 0
    arrays, back = safetensors.read(folder / "hf"), safetensors.read(folder / "llama")
    assert set(arrays) == set(back)
    assert all(np.array_equal(arrays[name], back[name]) for name in arrays)


def test_what_is_there_is_not_overwritten(folder, capsys):
    before = hashes(folder / "run")
    assert bring(folder / "hf", folder / "run") == refused(capsys, 2, "is there already")
    assert hashes(folder / "run") == before
    out = [*OUT, f"--workdir={folder / 'run'}", f"--output={folder / 'hf'}"]
    assert cli.main(out) == refused(capsys, 2, "is there already")
    assert cli.main([*out[:-1], f"--output={folder / 'text.txt'}"]) == refused(
        capsys, 2, "text.txt"
    )


def settings(**fields):
    return lambda place: (place / "config.json").write_text(json.dumps({**LLAMA, **fields}))


def cut(place):
    path = place / safetensors.FILE
    path.write_bytes(path.read_bytes()[:-100])


def lacking(name, **arrays):
    def change(place):
        kept = {n: np.array(a) for n, a in safetensors.read(place).items() if n != name} | arrays
        (place / safetensors.FILE).unlink()
        safetensors.write(place, {n: a.shape for n, a in kept.items()}, kept.items())

    return change


def other_words(place):
    words(50).save(str(place))
    (place / "tokenizer_config.json").write_text("{}")


def without(name):
    return lambda place: (place / name).unlink()


NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
BAD = {
    "cut short": (cut, 5, "cut short"),
    "no safetensors": (
        lambda p: (p / safetensors.FILE).write_bytes(b"hello" * 9),
        5,
        "safetensors",
    ),
    "empty": (lambda p: (p / safetensors.FILE).write_bytes(b""), 5, "0 bytes"),
    "no weights": (without(safetensors.FILE), 5, "0 safetensors files"),
    "no config": (without("config.json"), 5, "config.json"),
    "bad config": (lambda p: (p / "config.json").write_text("{"), 5, "JSON"),
    "missing array": (lacking(NORM), 5, NORM),
    "another shape": (lacking(NORM, **{NORM: np.zeros(17, np.float32)}), 5, "(17,)", "(16,)"),
    "an array too many": (
        lacking("", **{"model.extra": np.zeros(2, np.float32)}),
        5,
        "model.extra",
    ),
    "wider": (settings(hidden_size=32, head_dim=4), 5, "(40, 16)", "(40, 32)"),
    "deeper": (settings(num_hidden_layers=4), 5, "model.layers.3."),
    "unknown architecture": (settings(model_type="mamba"), 2, "'mamba'", "llama"),
    "unknown rotation": (settings(rope_parameters={"rope_type": "yarn"}), 2, "'yarn'"),
    "unknown unit": (settings(hidden_act="relu"), 2, "'relu'"),
    "biased feed-forward": (settings(mlp_bias=True), 2, "mlp_bias"),
    "no width": (settings(hidden_size=None), 2, "hidden_size"),
    "a word for a number": (settings(rms_norm_eps="small"), 2, "'small'"),
    "a list for a table": (settings(rope_scaling=[1]), 2, "config.json"),
    "too few kinds of layers": (
        settings(model_type="gemma2", head_dim=4, layer_types=["full_attention"]),
        2,
        "1 layer_types",
    ),
    "heads that do not divide": (settings(num_key_value_heads=3), 2, "num_kv_heads 3"),
    "another tokenizer": (other_words, 3, "50 ids", "40 rows"),
    "no tokenizer": (without("tokenizer.json"), 3, "tokenizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(name, folder, tmp_path, capsys):
    change, code, *said = BAD[name]
    shutil.copytree(folder / "hf", tmp_path / "hf")
    change(tmp_path / "hf")
    capsys.readouterr()
    assert bring(tmp_path / "hf", tmp_path / "run") == refused(capsys, code, *said)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    evaluate = ["eval", f"--workdir={tmp_path / 'hf'}", f"--text={folder / 'text.txt'}"]
    assert cli.main(evaluate) == refused(capsys, code, *said)


def test_places_that_hold_nothing_are_refused(tmp_path, capsys):
    assert bring(tmp_path / "none", tmp_path / "run") == refused(capsys, 5, "is not there")
    (tmp_path / "x.pt").write_text("")
    assert bring(tmp_path / "x.pt", tmp_path / "run") == refused(capsys, 5, "x.pt")
    (tmp_path / "x.bin").write_bytes(b"1" * 64)
    assert bring(tmp_path / "x.bin", tmp_path / "run") == refused(capsys, 5, "llama2.c")


def test_a_model_that_a_family_has_not_is_refused(folder, capsys, tmp_path):
    for form, said in (("qwen3", "head_norm_eps"), ("ouro", "SandwichNorm"), ("gemma2", "block")):
        out = [*OUT, f"--workdir={folder / 'run'}", f"--output={tmp_path / form}"]
        assert cli.main([*out, f"--format={form}"]) == refused(capsys, 2, said, form)
    assert not list(tmp_path.iterdir())


def test_an_index_names_no_file_elsewhere(folder, tmp_path):
    shutil.copytree(folder / "hf", tmp_path / "hf")
    index = {"weight_map": {NORM: "../model.safetensors"}}
    (tmp_path / "hf" / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file beside it"):
        safetensors.read(tmp_path / "hf")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F8", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32"},
        [],
    ],
)
def test_a_header_that_makes_no_sense_is_refused(entry, tmp_path):
    encoded = json.dumps({"a": entry}).encode()
    path = tmp_path / safetensors.FILE
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        safetensors.read(tmp_path)
