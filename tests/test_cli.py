"""The command line: one line for a mistake, the right exit code, no traceback."""

import json
import os
import subprocess
import sys

import pytest

from recursia import cli
from recursia.data import prepare
from tests.helpers.runs import prose, values, write_config, write_text

VERBS = ("train", "eval", "generate", "budget", "parity", "data", "data prepare", "data inspect")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, and data that is broken in every way."""
    folder = tmp_path_factory.mktemp("cli")
    write_text(folder)
    write_config(folder / "tiny.py", values(folder))
    (folder / "empty.txt").write_text("")
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "empty").mkdir()
    for name, tokenizer in (("bytes", "byte"), ("pieces", "bpe:260")):
        (folder / f"{name}.txt").write_text(prose(5, 200))
        options = prepare.Options(tokenizer, (str(folder / "validation.txt"),))
        prepare.prepare((str(folder / f"{name}.txt"),), str(folder / name), **vars(options))
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


def assert_one_line(err, *parts):
    assert err.startswith("recursia: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    assert all(part in err for part in parts), err


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_has_help(capsys, verb):
    code, out, err = run(capsys, *verb.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: recursia {verb}".strip())


def test_the_package_is_a_program_too():
    done = subprocess.run(
        [sys.executable, "-m", "recursia", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(verb in done.stdout for verb in VERBS[:6])


def test_a_mistake_ends_the_program_with_its_code():
    arguments = ["train", "--config=mr:tiny", "--workdir=none"]
    done = subprocess.run(
        [sys.executable, "-m", "recursia", *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "no file mr.py", "did you mean 'mor'?")
    assert not os.path.exists("none")


# What is typed after the configuration, the exit code and parts of the answer.
WRONG = {
    "an unknown field": ("--config.train.num_stps=3", 2, "did you mean 'num_steps'?"),
    "a value out of range": ("--config.train.num_steps=0", 2, "train.num_steps: got 0"),
    "no value": ("--config.train.num_steps", 2, "train.num_steps: got ''"),
    "layers that do not divide": ("--config.model.num_layers=5", 2, "num_layers 4 or 6"),
    "a batch that does not divide": (
        "--config.train.batch_size=6",
        2,
        "train.batch_size",
        "over 8",
    ),
    "microbatches too small": ("--config.train.num_microbatches=2", 2, "batch_size: 4", "mesh"),
    "microbatches that do not divide": ("--config.train.num_microbatches=3", 2, "num_microbatches"),
    "a mesh of other devices": ("--config.mesh.data=3", 2, "config.mesh", "let one of them be -1"),
    "a width that does not divide": (
        "--config.mesh.data=1 --config.mesh.fsdp=8 --config.block.embed_dim=12",
        2,
        "is 12 wide, which 8 devices do not divide",
    ),
    "weights for other paths": (
        "--config.data.path={0}/bytes --config.data.weights=(1.0,2.0)",
        2,
        "1",
    ),
    "no such folder": ("--config.data.path={0}/none", 3, "/none: no such folder", "data prepare"),
    "a folder of something else": ("--config.data.path={0}", 3, "no prepared data"),
    "an empty folder": ("--config.data.path={0}/empty", 3, "/empty: holds no manifest.json"),
    "no such text": ("--config.data.text={0}/none.txt", 3, "/none.txt: does not exist"),
    "an empty text": ("--config.data.text={0}/empty.txt", 3, "empty.txt: 0 documents"),
    "a broken line": ("--config.data.text={0}/broken.jsonl", 3, "broken.jsonl:2: bad JSON", "skip"),
    "another kind of file": ("--config.data.text={0}/tiny.py", 3, "tiny.py: not a kind of file"),
    "too little text": ("--config.train.seq_len=100000", 3, "lower seq_len or prepare more text"),
    "no such tokenizer": ("--config.data.tokenizer=nope", 3, "nope: neither 'byte'"),
    "a tokenizer of no size": ("--config.data.tokenizer=bpe:x", 2, "'x' is not a number of ids"),
    "a vocabulary below the tokenizer's": (
        "--config.model.vocab_size=100",
        3,
        "config.model.vocab_size: the model has 100 tokens, the data's tokenizer 257; raise it",
    ),
    "data of two tokenizers": ("--config.data.path={0}/bytes,{0}/pieces", 3, "tokenizer"),
}


@pytest.mark.parametrize(
    ("typed", "code", "parts"), [(t, c, p) for t, c, *p in WRONG.values()], ids=WRONG
)
def test_what_cannot_be_trained_is_one_line(folder, tmp_path, capsys, typed, code, parts):
    typed = typed.format(folder).split(" ")
    base = [f"--config={folder / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    got, out, err = run(capsys, "train", *base, *typed)
    assert (got, out) == (code, "")
    assert_one_line(err, *parts)
    assert not (tmp_path / "run" / "config.json").exists()  # nothing of a run was begun


@pytest.mark.parametrize("name", ["empty.txt", "empty.txt/run"])
def test_a_workdir_that_cannot_be_written_is_one_line(folder, capsys, name):
    arguments = [f"--config={folder / 'tiny.py'}", f"--workdir={folder / name}"]
    code, _, err = run(capsys, "train", *arguments)
    assert code == 2
    assert_one_line(err, f"--workdir={folder / name}: cannot be written")


@pytest.mark.parametrize("verb", [("eval",), ("generate", "--prompt=a")])
def test_a_directory_that_is_no_run_is_one_line(folder, tmp_path, capsys, verb):
    for path in (folder / "empty", tmp_path / "none"):
        code, _, err = run(capsys, *verb, f"--workdir={path}")
        assert code == 2
        assert_one_line(err, str(path), "no config.json; is it a run's directory?")
        assert not (tmp_path / "none").exists()
    (tmp_path / "config.json").write_text("{")
    code, _, err = run(capsys, *verb, f"--workdir={tmp_path}")
    assert code == 2
    assert_one_line(err, "config.json: cannot be read")


OTHERS = [
    (("train", "--config=mor:tiny"), 2, "train: give --workdir=DIR"),
    (("parity", "none.npz", "--config.a=3"), 2, "parity: takes no --config; remove it"),
    (("data", "inspect", "{0}/empty"), 3, "no prepared data"),
    (("data", "prepare", "--input", "{0}/none.txt", "--output={0}/new"), 3, "does not exist"),
    (("data", "prepare", "--input", "{0}/broken.jsonl", "--output={0}/new"), 3, "broken.jsonl:2"),
    (
        ("data", "prepare", "--input", "{0}/train.txt", "--output={0}/new", "--tokenizer=bpe:9"),
        2,
        "257 or more",
    ),
    (("budget", "--config=mor:none"), 2, "no preset 'none'"),
    (("budget", "--config=mor:tiny", "--versus=mr:tiny"), 2, "did you mean 'mor'?"),
    (("budget", "--config=mor:tiny", "--versus=mor:tiny"), 2, "a name stands twice"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "part"), OTHERS, ids=[" ".join(a) for a, *_ in OTHERS]
)
def test_mistakes_of_other_verbs_are_one_line(folder, capsys, arguments, code, part):
    got, _, err = run(capsys, *(argument.format(folder) for argument in arguments))
    assert got == code
    assert_one_line(err, part)
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("", "required: VERB"),
        ("trian", "invalid choice: 'trian'"),
        ("train", "required: --config"),
        ("train --workdir=x --config", "--config: expected one argument"),
        ("train --config=mor:tiny --workdir=x --steps=3", "unrecognized arguments: --steps=3"),
        ("train --conf=mor:tiny --workdir=x", "required: --config"),
        ("eval --workdir=x --depths=a", "--depths: got 'a', takes numbers of recursions"),
        ("eval --workdir=x --depths=1,-2", "--depths: got '1,-2'"),
        ("eval --workdir=x --num_batches=-1", "--num_batches: got '-1', takes a number from 0"),
        ("compile --config=mor:tiny --tries=0", "--tries: got '0', takes a number from 1"),
        ("eval --workdir=x --step=last", "--step: got 'last', takes a number from 0"),
        ("eval --workdir=x --mode=train", "--mode: invalid choice"),
        ("generate --workdir=x", "required: --prompt"),
        ("budget --config=mor:tiny --match=x", "--match: invalid choice"),
        ("parity", "required: FILE.npz"),
        ("data", "required: prepare|inspect"),
        (
            "data prepare --input a --output b --shard_tokens=x",
            "--shard_tokens: got 'x', takes a number from 1",
        ),
    ],
)
def test_wrong_usage_is_one_line(capsys, typed, part):
    code, out, err = run(capsys, *typed.split())
    assert (code, out) == (2, "")
    assert_one_line(err, part, "--help")


def dry(capsys, *arguments):
    code, out, err = run(capsys, "train", *arguments, "--dry_run", "--workdir=none")
    assert (code, err) == (0, ""), err
    assert not os.path.exists("none")
    return out


def test_overrides_stand_anywhere_with_or_without_equals(capsys):
    name = "--config=mor:tiny"
    plain = dry(capsys, name)
    want = dry(capsys, name, "--config.model.block.mlp_dim=96", "--config.train.seq_len=64")
    assert want != plain
    for typed in (
        ("--config.model.block.mlp_dim=96", "--config.train.seq_len=64", name),
        (name, "--config.model.block.mlp_dim", "96", "--config.train.seq_len", "64"),
        ("--config.block.mlp_dim", "96", name, "--config.train.seq_len=64"),
        ("--config.train.seq_len=64", "--config", "mor:tiny", "--config.block.mlp_dim=96"),
    ):
        assert dry(capsys, *typed) == want
    # The same value twice, by both names of a field.
    twice = ("--config.block.mlp_dim=96", "--config.model.block.mlp_dim=96")
    assert dry(capsys, name, *twice, "--config.train.seq_len=64") == want


def test_a_field_of_the_model_may_leave_out_its_section(capsys):
    name = "--config=mor:tiny"
    short = dry(capsys, name, "--config.depth.capacity=(1.0,0.5,0.25)")
    assert short == dry(capsys, name, "--config.model.depth.capacity=(1.0,0.5,0.25)")
    assert short != dry(capsys, name)


def test_budget_prints_one_json_object(capsys):
    typed = ("--config=vanilla:360m", "--versus=mor:360m,recursive:360m", "--match=flops")
    code, out, err = run(capsys, "budget", *typed, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    keys = """unique_parameters applied_parameters forward_flops_per_token training_flops_per_token
        mor_flops_per_token cache_bytes_per_token optimizer_bytes""".split()
    assert set(keys) <= result.keys()
    assert list(result["versus"]) == ["mor:360m", "recursive:360m"]
    assert all(set(keys) <= row.keys() for row in result["versus"].values())
    assert result["versus"]["mor:360m"]["unique_parameters"] < result["unique_parameters"]


def test_data_is_prepared_and_looked_at(folder, tmp_path, capsys):
    output = str(tmp_path / "data")
    inputs = ("--input", str(folder / "train.txt"), "--validation", str(folder / "validation.txt"))
    code, out, _ = run(capsys, "data", "prepare", *inputs, f"--output={output}", "--tokenizer=byte")
    assert code == 0 and set(json.loads(out)) == {"train", "validation"}
    code, out, _ = run(capsys, "data", "inspect", output)
    assert code == 0
    assert json.loads(out)["splits"]["train"]["tokens"] == len(prose(0, 800)) + 1


def test_what_nobody_reads_is_no_success():
    # The pipe is closed before anything is written to it.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "recursia", "budget", "--config=mor:tiny"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
