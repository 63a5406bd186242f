"""The result of preparing does not depend on units, workers and parts, nor on interruptions."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pyarrow
import pytest
from pyarrow import parquet

from recursia.data import named, partial, units, workers
from recursia.data import prepare as prepare_lib
from recursia.errors import ConfigError
from tests.helpers import exhaustive
from tests.helpers.corpora import prepare

WORDS = [f"{a}{b}" for a in ("ki", "ü", "三", "of the ") for b in ("ra", " n", "!", "\n")]
SMALL = 3000  # bytes of a unit here
HOW = {"tokenizer": "byte", "validation_fraction": 0.2, "shard_tokens": 4000}


def texts(seed, count):
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randint(1, 200))) for _ in range(count)]


@pytest.fixture
def corpus(put, tmp_path):
    """Files of every kind, of which two are large enough to be cut."""
    table = pyarrow.table({"text": texts(4, 30)})
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=5)
    return [
        put("a.jsonl", [*texts(1, 60), " ", ""]),
        put("b.txt.gz", texts(2, 1)[0]),
        put("c.jsonl.zst", texts(3, 20)),
        str(tmp_path / "d.parquet"),
        put("e.txt", texts(5, 1)[0]),
    ]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", SMALL)


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def made(output):
    """Returns the units of an unfinished preparation."""
    return made_in(pathlib.Path(f"{output}.partial"))


def made_in(unfinished):
    folder = unfinished / "units"
    return [name for name in os.listdir(folder) if "." not in name] if folder.exists() else []


@pytest.fixture
def whole(corpus, tmp_path):
    """What one unit gives."""
    prepare(corpus, tmp_path / "whole", **HOW)
    return contents(tmp_path / "whole")


def test_units_and_parts_change_nothing(corpus, whole, tmp_path, monkeypatch):
    assert len([name for name in whole if name.endswith(".tokens")]) > 6
    for size in (700, SMALL, 20_000):
        monkeypatch.setattr(units, "UNIT_BYTES", size)
        prepare(corpus, tmp_path / f"{size}", **HOW)
        assert contents(tmp_path / f"{size}") == whole
    monkeypatch.setattr(units, "UNIT_BYTES", SMALL)
    for part in (3, 1, 2):
        assert prepare(corpus, tmp_path / "parts", part=(part, 3), **HOW) is None
        assert not (tmp_path / "parts").exists()
    assert len(made(tmp_path / "parts")) > 9
    monkeypatch.setattr(units.Unit, "make", None)  # nothing is left to make
    prepare(corpus, tmp_path / "parts", **HOW)
    assert contents(tmp_path / "parts") == whole
    assert not (tmp_path / "parts.partial").exists()


def test_workers_change_nothing(corpus, whole, small, tmp_path):
    prepare(corpus, tmp_path / "two", num_workers=2, **HOW)
    assert contents(tmp_path / "two") == whole


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:258"])
def test_a_document_that_is_moved_is_so_in_its_unit(put, tmp_path, small, fraction, tokenizer):
    files = [put(f"{i}.txt", text) for i, text in enumerate([*texts(0, 4), "x y\n" * 2000])]
    how = {"tokenizer": tokenizer, "validation_fraction": fraction}
    prepare(files, tmp_path / "many", **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", 1 << 30)
        prepare(files, tmp_path / "one", **how)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("size", [1, 7, 30, 64])
def test_the_parts_of_a_file_are_the_file(put, size):
    lines = ["", '{"text": "a"}', "  ", '{"text": "bb bb bb bb"}', "broken", '{"text": "c"}', "bad"]
    for end in ("", "\n"):
        path = put("a.jsonl", ("\n".join(lines) + end).encode())
        read = lambda part: [*part.records("text")]
        said = lambda each: str(each) if isinstance(each, Exception) else each.text
        expected = [said(each) for each in read(named.of(path))]
        parts = named.of(path).parts(size)
        assert [said(each) for part in parts for each in read(part)] == expected
        assert sum(part.size for part in parts) == os.path.getsize(path)
        assert sum(f"{path}:{number}:" in "".join(expected) for number in (5, 7)) == 2
    assert len(named.of(path).parts(1 << 20)) == 1 < len(named.of(path).parts(20))


class Killed(BaseException):
    pass


def test_an_interrupted_preparation_goes_on(corpus, whole, small, tmp_path, monkeypatch):
    out, begun, make = tmp_path / "out", [], units.Unit.make

    def counted(self, *args):
        if len(begun) in (2, 5) and begun[-1] != "killed":
            begun.append("killed")
            raise Killed
        begun.append(self.number)
        return make(self, *args)

    monkeypatch.setattr(units.Unit, "make", counted)
    for _ in range(2):
        with pytest.raises(Killed):
            prepare(corpus, out, **HOW)
        assert not out.exists()
    rename = os.rename

    def killed(old, new):
        if new == str(out):
            raise Killed
        rename(old, new)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", killed)
        prepare(corpus, out, **HOW)
    prepare(corpus, out, **HOW)
    numbers = [number for number in begun if number != "killed"]
    assert contents(out) == whole and numbers == [*range(len(numbers))]
    assert not (tmp_path / "out.partial").exists()


def begun(corpus, out, **how):
    """Makes one of the units."""
    prepare(corpus, out, part=(1, 1000), **HOW | how)


def test_what_was_begun_is_not_mixed_with_another_request(
    corpus, small, put, tmp_path, refused, monkeypatch
):
    out = tmp_path / "out"
    begun(corpus, out)
    call = lambda files=corpus, **how: lambda: prepare(files, out, **HOW | how)
    refused(call(shard_tokens=5000), "out.partial", "shard_tokens (4000, now 5000)")
    refused(call(validation_fraction=0.3), "validation_fraction (0.2, now 0.3)")
    refused(call(corpus[::-1]), "sources (fewer, or another order)")
    refused(call(corpus[1:]), "sources (fewer")
    prepare(corpus[1:2], tmp_path / "other", tokenizer="bpe:257")
    refused(call(tokenizer=str(tmp_path / "other")), "tokenizer ('")
    os.utime(corpus[0], (1, 1))
    refused(call(), "sources (a.jsonl)")
    put("e.txt", "another text")
    refused(call(), "sources (a.jsonl, e.txt)")


def test_a_damaged_unit_is_made_anew(corpus, whole, small, tmp_path, refused):
    """Whatever of it is damaged; what says how units were made is refused."""
    out = tmp_path / "out"
    prepare(corpus, out, part=(1, 1), **HOW)
    unfinished = pathlib.Path(f"{out}.partial")
    first, second, third, fourth, fifth, sixth = sorted((unfinished / "units").iterdir())[:6]
    tokens = first / "train.tokens"
    tokens.write_bytes(b"\xff" + tokens.read_bytes()[1:])
    (second / "train.documents").write_bytes(b"")
    (third / "found.json").write_text("[" * 100_000)
    (fourth / "found.json").unlink()
    (fifth / "validation.tokens").unlink()
    shutil.rmtree(sixth)
    sixth.symlink_to(tmp_path / "whole")
    request = (unfinished / "request.json").read_text()
    for damage in ("", "[" * 100_000, "[]"):
        (unfinished / "request.json").write_text(damage)
        refused(lambda: prepare(corpus, out, **HOW), "request.json: cannot be read")
    (unfinished / "request.json").write_text(request)
    prepare(corpus, out, **HOW)
    assert contents(out) == whole == contents(tmp_path / "whole")


def test_one_process_at_a_time_prepares_a_folder(corpus, small, tmp_path, refused):
    out = tmp_path / "out"
    begun(corpus, out)
    options = prepare_lib.Options(**HOW)
    asked = prepare_lib.request(corpus, options)
    recorded = asked.recorded(prepare_lib.from_spec("byte", lambda: iter(())))
    for held, refusals in (
        (None, [None, (1, 4)]),
        ((1, 4), [None, (1, 4)]),
    ):
        with partial.Partial(str(out), f"{out}.partial", asked, SMALL).held(recorded, held):
            for part in refusals:
                refused(lambda part=part: prepare(corpus, out, part=part, **HOW), "another process")
    with partial.Partial(str(out), f"{out}.partial", asked, SMALL).held(recorded, (1, 4)):
        prepare(corpus, out, part=(2, 4), **HOW)


def test_what_others_put_there_is_neither_used_nor_removed(corpus, small, put, tmp_path, refused):
    mine = put("mine/notes.txt", "mine")
    call = lambda: prepare(corpus, tmp_path / "out", partial_folder=str(tmp_path / "mine"), **HOW)
    refused(call, "mine: holds 1 entries", "notes.txt")
    os.unlink(mine)
    prepare(corpus, tmp_path / "out", partial_folder=str(tmp_path / "mine"), **HOW)
    begun(corpus[:3], tmp_path / "other", partial_folder=str(tmp_path / "mine"))
    call()  # it is there, and the folder is another's
    assert len(made_in(tmp_path / "mine")) == 1
    prepare(corpus[:3], tmp_path / "other", partial_folder=str(tmp_path / "mine"), **HOW)
    assert not (tmp_path / "mine").exists()


def test_what_is_left_of_a_finished_preparation_is_removed(corpus, small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "remove", lambda self: None)
        prepare(corpus, tmp_path / "out", **HOW)
    assert made(tmp_path / "out")
    prepare(corpus, tmp_path / "out", **HOW)
    assert not (tmp_path / "out.partial").exists()


def test_a_part_does_not_learn_a_tokenizer(corpus, tmp_path, refused):
    call = lambda: prepare(corpus, tmp_path / "out", part=(1, 2), tokenizer="bpe:300")
    refused(call, "--part=1/2", "bpe:300", "--tokenizer", kind=ConfigError, code=2)


def test_a_broken_line_stops_a_worker_in_one_line_and_what_was_made_stays(
    put, small, tmp_path, capfd
):
    path = put("a.jsonl", [*texts(0, 20)])
    with open(path, "ab") as file:
        file.write(b"\n{broken\n")
    with pytest.raises(ValueError, match=r"^\S*a.jsonl:22: bad JSON.*on_error=skip.$"):
        prepare([path], tmp_path / "out", num_workers=2, **HOW)
    assert "Traceback" not in capfd.readouterr().err
    assert made(tmp_path / "out") and not (tmp_path / "out").exists()


def test_a_worker_that_is_killed_is_one_line(corpus, small, tmp_path, monkeypatch):
    def killed(self, partial, num_workers, start=workers._Worker.__init__):
        start(self, partial, num_workers)
        self.process.kill()

    monkeypatch.setattr(workers._Worker, "__init__", killed)
    with pytest.raises(ValueError, match=r"exit code -9 while it prepared .*fewer --num_workers"):
        prepare(corpus, tmp_path / "out", num_workers=2, **HOW)


def test_a_worker_ends_with_its_parent(corpus, small, tmp_path):
    prepare(corpus, tmp_path / "out", part=(1, 1000), **HOW)
    options = prepare_lib.Options(**HOW)
    folder = f"{tmp_path / 'out'}.partial"
    made = partial.Partial("", folder, prepare_lib.request(corpus, options), SMALL)
    worker = workers._Worker(made, 1)
    worker.make(made.units[0], lambda _: None)
    worker.process.stdin.close()
    assert worker.process.wait(timeout=20) == 0


def test_a_part_is_given_as_one_of_several(refused_command):
    prepare = ("data", "prepare", "--input", "a", "--output", "b")
    for typed in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        refused_command(*prepare, f"--part={typed}", parts=(typed, "such as 2/8"))


PREPARE = """
import sys
from recursia.data import prepare, units
units.UNIT_BYTES = {size}
prepare.prepare(sys.argv[3:], sys.argv[1], prepare.Options(**{how}), num_workers=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [exhaustive(1), 2])
def test_killed_at_any_instant_it_goes_on(corpus, whole, tmp_path, num_workers):
    """Kills it after every 15th unit, and in joining."""
    out = tmp_path / "out"
    script = PREPARE.format(size=SMALL // 10, how=HOW)
    command = [sys.executable, "-c", script, str(out), str(num_workers), *corpus]
    for count in range(1, 1000):
        started = subprocess.Popen(command)
        while started.poll() is None and len(made(out)) < 15 * count:
            time.sleep(0.002)
        started.kill()
        if started.wait() == 0:
            break
    assert count > 3
    assert contents(out) == whole and not (tmp_path / "out.partial").exists()


def test_the_folder_of_an_older_version_is_read(tmp_path):
    """What version 0.1 wrote of the bundled corpus, before there were units."""
    how = {"tokenizer": "byte", "validation_fraction": 0.2, "shard_tokens": 50_000}
    manifest = prepare(["bundled:train"], tmp_path / "out", **how)
    assert manifest["fingerprint"][:12] == "443c07c62cf3"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
