"""What no writer writes is refused by its name, in one line and in bounded memory."""

import gzip
import json
import os
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

from recursia.convert import gguf, llama2c, safetensors
from recursia.data.packing import Reader
from recursia.errors import CheckpointError, ConfigError, DataError, UserError
from recursia.evaluate import parity
from recursia.workdir import directory, settings_history
from tests.helpers import readers
from tests.helpers.readers import npy, prepared, zipped
from tests.helpers.refusals import refused
from tests.helpers.runs import values, write_text


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


def test_what_has_a_line_break_is_quoted_in_one_line(tmp_path):
    contents = values(tmp_path)
    contents["model"]["shar\ning\u2028"] = contents["model"].pop("sharing")
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with refused(UserError, "config.json.model.shar ing : no such field") as found:
        directory.recorded(tmp_path)
    assert len(str(found.value).splitlines()) == 1


def test_a_change_of_what_is_no_field_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values(tmp_path)))
    row = {"step": 3, "changed": {"train.seq_len.more": [1, 2]}}
    (tmp_path / settings_history.FILE).write_text(json.dumps(row) + "\n")
    with refused(ConfigError, f"{settings_history.FILE}: 'train.seq_len.more' was changed"):
        settings_history.of_step(tmp_path, 2)


def test_a_mapped_file_that_shrinks_is_refused(tmp_path):
    """A read of it would end the process with SIGBUS."""
    for module, make in (
        (gguf, readers.gguf_file),
        (llama2c, readers.llama2c),
        (safetensors, readers.tensors),
    ):
        arrays = module.Arrays(path := make(tmp_path).path)
        os.truncate(path, 40)
        for name in arrays:
            with refused(CheckpointError, path.name):
                arrays[name]


def test_a_header_of_millions_of_layers_is_refused_before_they_are_laid_out(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("7i", 2, 2, (1 << 24) - 1, 1, 1, 2, 2) + bytes(100))
    with refused(CheckpointError, "model.bin: is cut short: 128 bytes of over"):
        llama2c.Arrays(path)
