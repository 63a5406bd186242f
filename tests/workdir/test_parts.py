"""Lines in a bucket are those of a file on disk, and a run's folders are moved in safe orders."""

import json
import os

import pytest

from recursia import buckets, jsonlines, parts, storage
from recursia.objects import BucketPath
from recursia.parts import Parts
from recursia.train.writer import Writer, forget, scored
from recursia.workdir import digests, place, steps
from recursia.workdir.history import History


def lines(path):
    return list(jsonlines.values(path))


def test_lines_are_joined_by_their_readers_whatever_parts_they_are_in(bucket, monkeypatch):
    monkeypatch.setattr(parts, "LARGE", 40)
    path = buckets.path(bucket) / "rows.jsonl"
    written = [{"step": step} for step in range(20)]
    file = Parts(path)
    for row in written:
        file.write(jsonlines.line(row))
        file.flush()
    assert len(parts.parts(path)) > 3 and lines(path) == written
    parts.append(path, jsonlines.line({"step": 20}))
    assert lines(path) == [*written, {"step": 20}]
    parts.rewrite(path, b'{"step": 1}\n')
    assert lines(path) == [{"step": 1}]
    Parts(path).close()
    (path / "000009-000001.jsonl").write_bytes(b"a generation without its part 0")
    assert lines(path) == [{"step": 1}]


@pytest.mark.parametrize("is_bucket", [True, False], ids=["bucket", "disk"])
def test_a_resumed_run_deletes_the_rows_after_its_step(is_bucket, bucket, tmp_path):
    workdir = buckets.path(bucket) if is_bucket else tmp_path
    for start in (0, 2):
        writer = Writer(workdir, start)
        for step in range(start + 1, 5):
            writer.write({"step": step, "loss": float(start)})
            writer.sample(step, "a", "b")
        writer.write({"step": 4, "validation_loss": 1.0})
        writer.close()
    assert [row["loss"] for row in lines(workdir / "metrics.jsonl")[:-1]] == [0.0, 0.0, 2.0, 2.0]
    assert scored(workdir, 4, True, 1)
    forget(workdir, 4)
    assert not scored(workdir, 4, True, 1)
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == [1, 2, 3, 4]
    history = History(workdir / "checkpoints.jsonl")
    history.add(3, bytes=5)
    history.add(3, validation_loss=0.5)
    read = History(workdir / "checkpoints.jsonl")
    assert read.saved[3]["bytes"] == 5 and read.losses == {3: 0.5}


@pytest.mark.parametrize("is_bucket", [True, False], ids=["bucket", "disk"])
def test_lines_that_cannot_be_written_wait_and_both_places_say_so_alike(
    is_bucket, bucket, tmp_path, monkeypatch, capsys
):
    path = (buckets.path(bucket) if is_bucket else tmp_path) / "rows.jsonl"

    def refuse(*_):
        raise storage.Unreachable(str(path), "it is full")

    for ends_well in (True, False):
        file = place.of(path).lines(path)
        with monkeypatch.context() as patch:
            patch.setattr(*((BucketPath, "write_bytes") if is_bucket else (os, "write")), refuse)
            for step in (1, 2):
                file.write(jsonlines.line({"step": step}))
                file.flush()
            said = f"{path}: cannot be written (it is full); its lines wait in memory, and the "
            assert capsys.readouterr().err == f"{said}run goes on\n"
            if not ends_well:
                file.close()
                assert capsys.readouterr().err == f"{path}: 2 lines could not be written\n"
        if ends_well:
            file.write(jsonlines.line({"step": 3}))
            file.flush()
            assert capsys.readouterr().err == f"{path}: is written again, and complete\n"
            file.close()
        assert [row["step"] for row in lines(path)] == [1, 2, 3]


def saved(bucket):
    """A folder of a step that counts, as far as its names say."""
    folder = buckets.path(bucket) / "checkpoints" / "3"
    for name in ("state/d/x", "meta/metadata", digests.FILE, digests.COMMIT):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_step_whose_deletion_is_cut_short_does_not_count_and_is_deleted_later(
    bucket, monkeypatch
):
    folder, gone = saved(bucket), []

    def unlink(self, missing_ok=False, real=BucketPath.unlink):
        if gone:
            raise storage.Unreachable(str(self), "cut short")
        gone.append(self.name)
        real(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "unlink", unlink)
        steps.delete(folder)
    assert gone == [digests.COMMIT] and steps.finished(folder.parent) == []
    (doomed,) = folder.parent.glob(f"*{steps.DELETING}")
    place.of(doomed).end(doomed)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_is_moved_whole_before_it_leaves_its_place(bucket):
    folder = saved(bucket)
    names = [each.relative_to(folder).as_posix() for each in folder.rglob("*")]
    to = folder.with_name("3.unreadable")
    place.of(folder).move(folder, to, digests.COMMIT)
    assert [each.relative_to(to).as_posix() for each in to.rglob("*")] == names
    assert steps.folders(folder.parent) == [] and steps.aside(folder.parent) == [to]


def test_a_path_in_a_bucket_reads_as_one_on_disk(bucket, tmp_path):
    for path in (buckets.path(bucket), tmp_path):
        folder = path / "a"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.json").write_text(json.dumps({"é": 1}), encoding="utf-8")
        (folder / "big").write_bytes(bytes(range(256)) * 40000)
        assert folder.is_dir() and not folder.is_file() and (folder / "x.json").is_file()
        assert sorted(each.name for each in folder.iterdir()) == ["big", "x.json"]
        assert (folder / "big").stat().st_size == 256 * 40000
        with (folder / "big").open("rb") as file:
            assert file.read() == bytes(range(256)) * 40000
        assert json.loads((folder / "x.json").read_text(encoding="utf-8")) == {"é": 1}
        (folder / "x.json").replace(path / "y.json")
        assert not (folder / "x.json").exists() and (path / "y.json").exists()
        with pytest.raises(FileNotFoundError):
            (folder / "none").read_bytes()
        (folder / "big").unlink()
        (path / "none").unlink(missing_ok=True)
