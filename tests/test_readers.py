"""Readers refuse in one line what their writers do not write, in bounded memory; none executes."""

import ast
import gzip
import io
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recursia
from recursia import jsonlines
from recursia.convert import safetensors
from recursia.data import tokenizer as tokenizers
from recursia.data.packing import Reader, Writer
from recursia.data.tokenizer import ByteTokenizer
from recursia.data.windows import Windows
from recursia.errors import DataError, UserError
from recursia.evaluate import parity
from recursia.workdir import directory
from tests.helpers.refusals import refused
from tests.helpers.runs import values, write_text

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True, database=None)
STRANGE = (None, True, -1, 0, 1 << 31, 1 << 70, 1e999, 0.5, "", "O", "../outside", "\ud800", [], {})


def prepared(folder):
    """Writes prepared data of two shards; returns its manifest as text."""
    with Writer(str(folder), ByteTokenizer(), 6) as writer:
        for text in ("abc", "defg", "h"):
            writer.add("train", ByteTokenizer().encode(text), len(text))
        writer.finish({"sources": [{"split": "train", "name": "a.txt", "sha256": "0"}]})
    return (folder / "manifest.json").read_text()


def places(value, path=()):
    """Returns the path of every value inside a JSON value."""
    value = dict(enumerate(value)) if isinstance(value, list) else value
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def damaged(draw, text):
    """Draws a JSON text with a value replaced or taken out, or with bytes changed."""
    whole = json.loads(text)
    how = draw(st.sampled_from(("replace", "replace", "remove", "bytes", "cut")))
    if how == "replace":
        path = draw(st.sampled_from(places(whole)))
        return json.dumps(replaced(whole, path, draw(st.sampled_from(STRANGE)))).encode()
    if how == "remove":
        *path, last = draw(st.sampled_from(places(whole)[1:]))
        inner = whole
        for key in path:
            inner = inner[key]
        del inner[last]
        return json.dumps(whole).encode()
    return draw(broken(text.encode(), how))


@st.composite
def broken(draw, raw, how="bytes"):
    """Draws bytes with a few of them changed, or without their end."""
    raw = bytearray(raw)
    if how == "cut":
        return bytes(raw[: draw(st.integers(0, len(raw) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def reads(call):
    """Calls a reader, which may refuse in one line and may do nothing else."""
    try:
        call()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


def fuzz(strategy, path, call):
    """Writes what is drawn to a file and reads it, time and again."""

    @EXAMPLES
    @given(strategy)
    def one(raw):
        path.write_bytes(raw)
        reads(call)

    one()


def test_any_manifest(tmp_path):
    folder = tmp_path / "data"
    text = prepared(folder)

    def use():
        rows = Windows(str(folder), "train", 2)
        for at in range(len(rows)):
            rows[at]
        assert Reader(str(folder)).tokenizer_name

    use()
    fuzz(damaged(text), folder / "manifest.json", use)


@pytest.mark.parametrize("ending", ["tokens", "documents"])
def test_any_shard(tmp_path, ending):
    folder = tmp_path / "data"
    prepared(folder)
    path = folder / f"train-00000.{ending}"
    whole = path.read_bytes()

    def use():
        rows = Windows(str(folder), "train", 2)
        for at in range(len(rows)):
            row = rows[at]
            assert row["tokens"].min() >= 0 and row["tokens"].max() < 257
            assert row["segment_ids"].max() <= 3 and row["positions"].max() < 2

    fuzz(st.one_of(broken(whole), broken(whole, "cut")), path, use)


def test_any_config(tmp_path):
    text = json.dumps(values(tmp_path))
    (tmp_path / "config.json").write_text(text)
    directory.recorded(tmp_path)
    fuzz(damaged(text), tmp_path / "config.json", lambda: directory.recorded(tmp_path))


def test_any_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fuzz(damaged('[{"step": 1, "loss": 2.5}]'), path, lambda: list(jsonlines.values(path)))


def test_any_tokenizer(tmp_path):
    learned = tokenizers.from_spec("bpe:260", lambda: iter(["low lower lowest"]))
    learned.save(str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / name
        text = path.read_text()
        fuzz(damaged(text), path, lambda: tokenizers.load(str(tmp_path)))
        path.write_text(text)
    fuzz(damaged('{"a": 0, "</s>": 1}'), tmp_path / "encoder.json", lambda: gpt2(tmp_path))


def gpt2(folder):
    (folder / "vocab.bpe").write_text("#version\n")
    other = folder / "gpt2"
    other.mkdir(exist_ok=True)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(folder / name, other)
    tokenizers.from_spec(str(other), lambda: iter(()))


def test_any_safetensors(tmp_path):
    arrays = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    safetensors.write(tmp_path, {n: a.shape for n, a in arrays.items()}, arrays.items())
    path = tmp_path / safetensors.FILE
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].decode()

    def use():
        found = safetensors.read(tmp_path)
        assert all(isinstance(found[name].sum(), np.generic) for name in found)

    framed = lambda raw: len(raw).to_bytes(8, "little") + raw + whole[8 + length :]
    for place in places(json.loads(header)):
        for strange in STRANGE:
            path.write_bytes(
                framed(json.dumps(replaced(json.loads(header), place, strange)).encode())
            )
            reads(use)
    fuzz(st.one_of(damaged(header).map(framed), broken(whole)), path, use)


def zipped(members):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return raw.getvalue()


def npy(array):
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.asarray(array), allow_pickle=True)
    return raw.getvalue()


def test_any_parity_file(tmp_path):
    path = tmp_path / "a.npz"
    inner = npy(np.arange(6.0).reshape(2, 3))
    whole = zipped({"family": npy("mor"), "config": npy("{}"), "tokens": inner})
    shaped = broken(inner).map(lambda raw: zipped({"tokens": raw, "family": npy("mor")}))
    fuzz(st.one_of(broken(whole), broken(whole, "cut"), shaped), path, lambda: parity.read(path))
    path.write_bytes(zipped({"tokens": inner.replace(b"), }", b"),\0\0"), "family": npy("mor")}))
    reads(lambda: parity.read(path))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"dtype": "O"}, ("dtype is 'O'", "uint16 or uint32")),
        ({"tokenizer": {"vocab_size": -1}}, ("vocab_size is -1",)),
        ({"tokenizer": {"vocab_size": 1 << 40}}, ("vocab_size is 1099511627776",)),
        ({"tokenizer": {"end_of_text": 257}}, ("end_of_text is 257", "0 to 256")),
        ({"splits": {"train": {"shards": {0: {"name": "../outside"}}}}}, ("'../outside'",)),
        ({"splits": {"train": {"shards": {0: {"tokens": 1 << 60}}}}}, ("tokens is 1152",)),
        ({"splits": {"train": {"tokens": 3}}}, ("tokens of train is 3", "11")),
        ({"splits": {"train": {"shards": {1: {"sha256": "0" * 64}}}}}, ("fingerprint",)),
    ],
    ids=str,
)
def test_a_manifest_that_no_writer_writes_is_refused_by_its_field(tmp_path, change, parts):
    folder = tmp_path / "data"

    def merged(value, change):
        keys = change if isinstance(change, dict) else {}
        for key in keys:
            value[key] = merged(value[key], change[key])
        return value if keys else change

    manifest = merged(json.loads(prepared(folder)), change)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with refused(DataError, "manifest.json: damaged", *parts):
        Reader(str(folder))


def test_object_arrays_and_impossible_shapes_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    old, new = b"'shape': (4,), }", b"'shape': (9999999999999,), }"
    large = npy(np.zeros(4, np.float64))
    assert old in large
    large = large.replace(old + b" " * (len(new) - len(old)), new)
    for content, part in (
        (npy(np.array([{}])), "allow_pickle"),
        (large, "shape (9999999999999,) in 160 bytes"),
    ):
        path.write_bytes(zipped({"family": npy("mor"), "tokens": content}))
        with refused(DataError, "not an .npz of plain arrays", part):
            parity.read(path)


BOMBED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from recursia.data import tokenizer
from recursia.evaluate import rows
from recursia.errors import DataError
for read in (
    lambda: tokenizer.from_spec(sys.argv[2], lambda: iter(())),
    lambda: list(rows.read(sys.argv[3], rows.checked)),
):
    try:
        read()
    except DataError as error:
        print(error)
"""


def test_a_bomb_is_refused_in_bounded_memory(tmp_path):
    for name in ("tokenizer.json.gz", "tasks.jsonl.gz"):
        (tmp_path / name).write_bytes(300 * gzip.compress(bytes(1 << 20)))
    names = [str(tmp_path / name) for name in ("tokenizer.json.gz", "tasks.jsonl.gz")]
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = 6 << 30 if limit == resource.RLIM_INFINITY else limit  # libraries map much, use little
    done = subprocess.run(
        [sys.executable, "-c", BOMBED, str(most), *names], capture_output=True, text=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 2 and "268435456 bytes" in said[0] and "67108864 bytes" in said[1], done


def test_a_deep_json_is_refused(tmp_path):
    deep = "[" * 10_000 + "]" * 10_000
    folder = tmp_path / "data"
    prepared(folder)
    for name in ("manifest.json", "tokenizer_config.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text('{"format_version": ' + deep + "}")
        with refused(DataError, name):
            assert Reader(str(folder)).tokenizer
        (folder / name).write_text(whole)
    (tmp_path / "config.json").write_text('{"model": ' + deep + "}")
    with refused(UserError, "config.json"):
        directory.recorded(tmp_path)


def test_a_row_of_a_thousand_million_tokens_is_refused(tmp_path, refused_command):
    write_text(tmp_path)
    name = "--config=mor:tiny"
    text = f"--config.data.text={tmp_path / 'train.txt'}"
    workdir = f"--workdir={tmp_path / 'run'}"
    long = "--config.train.seq_len=1e9"
    err = refused_command("train", name, text, workdir, long, code=3)
    assert "seq_len 1000000000" in err


EXECUTES = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch"}
YAML = {"compose", "safe_dump", "YAMLError"}  # which make no objects of what a file names


def test_nothing_that_reads_unpickles_evaluates_or_executes():
    root = pathlib.Path(recursia.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        where = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in EXECUTES:
                found.add((where, called.id))
            if isinstance(called, ast.Attribute) and ast.unparse(called) == "np.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle") == "False", where
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
                assert node.attr in YAML, where
            if isinstance(called, ast.Attribute) and called.attr == "exec_module":
                found.add((where, called.attr))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                found |= {(where, n) for n in names if str(n).partition(".")[0] in UNSAFE}
    # A user's own configuration is Python; what is shipped to others is run by transformers.
    remote = {("convert/remote/modeling_recursia.py", name) for name in ("torch", "torch.nn")}
    assert found == {("presets.py", "exec_module"), *remote}
