"""Whatever bytes a file has, its reader reads it or refuses it in one line."""

import json

import numpy as np
import pytest
from hypothesis import strategies as st

from recursia.evaluate import parity
from tests.helpers.damage import STRANGE, broken, damaged, either, fuzz, places, reads, replaced
from tests.helpers.readers import CASES, JSON, npy, zipped


@pytest.mark.parametrize("name", CASES)
def test_any_bytes(tmp_path, name):
    case = CASES[name](tmp_path)
    case.read()
    whole = case.path.read_bytes()
    fuzz(damaged(whole.decode()) if name in JSON else either(whole), case.path, case.read)


@pytest.mark.parametrize("name", ["metrics", "replayed", "tasks", "requests"])
def test_any_line(tmp_path, name):
    case = CASES[name](tmp_path)
    for line in case.path.read_text().splitlines():
        fuzz(damaged(line), case.path, case.read)


@pytest.mark.parametrize("name", CASES)
def test_no_file_at_all(tmp_path, name):
    """A folder, a link to itself, or one that leads nowhere stands in a file's place."""
    case = CASES[name](tmp_path)
    case.path.unlink()
    case.path.mkdir()
    reads(case.read)
    case.path.rmdir()
    for target in (case.path, tmp_path / "gone"):
        case.path.symlink_to(target)
        reads(case.read)
        case.path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON)
def test_any_value_at_any_place(tmp_path, name):
    case = CASES[name](tmp_path)
    whole = json.loads(case.path.read_bytes())
    for place in places(whole):
        for strange in STRANGE:
            case.path.write_text(json.dumps(replaced(whole, place, strange)))
            reads(case.read)


def test_any_header_of_safetensors(tmp_path):
    case = CASES["safetensors"](tmp_path)
    whole = case.path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].decode()
    framed = lambda raw: len(raw).to_bytes(8, "little") + raw + whole[8 + length :]
    for place in places(json.loads(header)):
        for strange in STRANGE:
            changed = json.dumps(replaced(json.loads(header), place, strange))
            case.path.write_bytes(framed(changed.encode()))
            reads(case.read)
    fuzz(damaged(header).map(framed), case.path, case.read)


def test_any_array_of_a_parity_file(tmp_path):
    path = tmp_path / "a.npz"
    inner = npy(np.arange(6.0).reshape(2, 3))
    shaped = broken(inner).map(lambda raw: zipped({"tokens": raw, "family": npy("mor")}))
    fuzz(st.one_of(shaped), path, lambda: parity.read(str(path)))
    path.write_bytes(zipped({"tokens": inner.replace(b"), }", b"),\0\0"), "family": npy("mor")}))
    reads(lambda: parity.read(str(path)))
