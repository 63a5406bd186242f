"""A report is one page that needs nothing else, says what the files say, and runs none of it."""

import dataclasses
import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

from recursia import cli, jsonlines
from recursia.report import comparison, depth, page, reading, record, serving, verdict
from tests.helpers import records
from tests.helpers.refusals import assert_one_line

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def workdir(tmp_path):
    rows = [*records.training_rows(), *records.validation_rows()]
    records.write(tmp_path / "run", rows)
    return tmp_path / "run"


def plots(html):
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', html, re.S)
    return json.loads(found[1])


def drawn(html):
    return set(re.findall(r'data-plot="(\w+)"', html))


def test_a_page_needs_nothing_else_and_is_small(workdir):
    html = page.page(record.read([workdir]), records.reading(), "")
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"(src|href)=[\"'](?!#)|@import|url\(", outside)
    assert len(html.encode()) < 3_000_000
    assert drawn(html) == set(plots(html)) >= {"loss", "learning_rate", "by_kind", "scores_1"}


@pytest.mark.slow
def test_a_page_of_many_long_runs_is_small(tmp_path):
    rows = [*records.training_rows(2000), *records.validation_rows(2000)]
    records.write(tmp_path / "run", rows, train={"num_steps": 2000})
    (found,) = record.read([tmp_path / "run"])
    many = [dataclasses.replace(found, name=f"run {index}") for index in range(16)]
    assert len(page.page(many, records.reading(), "").encode()) < 3_000_000


def test_nothing_from_files_is_markup(workdir):
    (workdir / "overrides.json").write_text(json.dumps({"data.text": EVIL, EVIL: "1"}))
    (workdir / "samples.jsonl").write_text(
        jsonlines.line({"step": 1, "prompt": EVIL, "text": EVIL})
    )
    (workdir / "incidents.jsonl").write_text(jsonlines.line({"step": 1, "reason": EVIL}))
    start = {"step": 0, "config": "", "device": EVIL, "time": 0.0, "recursia": EVIL}
    (workdir / "starts.jsonl").write_text(jsonlines.line(start))
    (workdir / "end.json").write_text(json.dumps({"code": 4, "why": EVIL}))
    read = records.reading()
    read.pieces[0][0] = EVIL
    named = workdir.rename(workdir.with_name("<script>alert(1)"))
    html = page.page(record.read([named]), read, EVIL)
    assert "<script>alert" not in html
    assert html.count("alert(1)") >= 6  # they are there, as text


def started(workdir, name):
    (workdir / "starts.jsonl").write_text(jsonlines.line({"step": 0, "config": name}))
    return record.differences(record.read([workdir])[0])


def test_what_differs_from_a_shipped_preset_is_named(workdir):
    name, changes = started(workdir, "mor:tiny")
    values = {field: (before, now) for field, before, now in changes}
    assert name == "mor:tiny" and values["model.block.embed_dim"] == ("64", "16")
    assert all(before != now for before, now in values.values())


@pytest.mark.parametrize("name", ["mor:nothing", "nothing:tiny", "", "\0", "{evil}", "{evil}:tiny"])
def test_a_configuration_that_is_not_shipped_is_not_run(workdir, name):
    evil = workdir / "evil.py"
    evil.write_text(f"open({str(workdir / 'ran')!r}, 'w')\ndef get_config(preset=''): return 1\n")
    found = started(workdir, name.format(evil=evil))
    assert found == ("", [("train.num_steps", "", "40")])
    assert not (workdir / "ran").exists()


@pytest.mark.parametrize("has_choice", [True, False])
def test_panels_that_do_not_apply_are_not_there(has_choice):
    names = {panel.name for panel in depth.panels(records.reading(has_choice))}
    of_choice = {"used", "by_position", "by_kind", "by_frequency", "scores_1"}
    assert names >= {"loss_by_recursion", "change"}
    assert (of_choice <= names) if has_choice else not (of_choice & names)
    assert ("load_router" in names) is not has_choice


def test_a_run_without_a_checkpoint_says_why_and_has_its_curves(workdir, capsys):
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    html = (workdir / "report.html").read_text()
    assert {"loss", "mean_depth", "over_validation_lens_loss"} <= drawn(html)
    assert "No text was read:" in html and "by_kind" not in drawn(html)
    assert f"{workdir}/report.html: written" in capsys.readouterr().out


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    records.write(tmp_path / "run", [], None)
    (found,) = record.read([tmp_path / "run"])
    html = page.page([found], None, "No text was read.")
    assert "not begun" in html and "loss" not in drawn(html)


def test_damaged_lines_are_left_out(workdir):
    broken = ['{"step": 3, "loss": NaN}\n', "[1]\n", '{"step": true, "loss": 1}\n', '{"loss": 1}\n']
    broken += ['{"step": -1, "loss": 1}\n', '{"step": 99, "loss": "2"}\n', '{"step": 7, "lo']
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 9.0}\n' + "".join(broken))
    (found,) = record.read([workdir])
    assert [row["step"] for row in found.training] == list(range(1, records.STEPS + 1))
    assert found.training[2]["loss"] == records.loss(3)
    assert found.training[4]["loss"] == 9.0  # of two rows of a step, the later one
    page.page([found], None, "")


def test_time_goes_on_where_an_earlier_process_ended(tmp_path):
    first, second = records.training_rows(20), records.training_rows(40)[20:]
    for row in second:  # its own clock begins again
        row["seconds_step"] -= 20 * records.PHASES["step"]
    records.write(tmp_path / "run", [*first, *second])
    (found,) = record.read([tmp_path / "run"])
    hours = np.array(found.lengths(found.training)["hours"]) * 3600
    assert (np.diff(hours) > 0).all()
    assert hours[-1] == pytest.approx(2 * 6 + 40 * records.PHASES["step"])


@pytest.mark.parametrize(
    ("code", "steps", "word", "said"),
    [
        (0, 40, "finished", "all 40 steps"),
        (4, 12, "diverged", "the reason of 4"),
        (75, 12, "stopped", "by a signal"),
        (3, 12, "failed", "exit code 3"),
        (None, 12, "stopped", "killed"),
        (None, 40, "finished", "all 40 steps"),
        (None, 0, "not begun", "0 of 40"),
    ],
)
def test_the_verdict_says_how_a_run_ended(tmp_path, code, steps, word, said):
    records.write(tmp_path / "run", records.training_rows(steps), code)
    (found,) = record.read([tmp_path / "run"])
    stands, sentence = verdict.verdict(found)
    assert stands == word and said in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("slope", "said"), [(-0.01, "still falling, by 0.100"), (0.0, "levelled off"), (0.01, "rising")]
)
def test_a_slope_is_told_from_noise(tmp_path, slope, said):
    noise = np.random.default_rng(0).normal(0, 0.02, 100)
    rows = [{"step": i + 1, "loss": 3 + slope * i + noise[i]} for i in range(100)]
    records.write(tmp_path / "run", rows, train={"num_steps": 100})
    (found,) = record.read([tmp_path / "run"])
    told = verdict.falling(found)
    assert said.partition(",")[0] in told


def test_losses_are_compared_at_the_flops_that_all_have_spent(tmp_path):
    for name, steps, factor in (("short", 20, 1.0), ("long", 40, 2.0)):
        rows = [*records.training_rows(steps, factor), *records.validation_rows(steps, factor)]
        records.write(tmp_path / name, rows)
    found = record.read([tmp_path / "short", tmp_path / "long"])
    made = comparison.comparison(found)
    short, long = made.points
    assert short.equal == pytest.approx(records.loss(20) / np.log(2))
    assert long.equal == pytest.approx(2 * records.loss(20) / np.log(2))
    assert long.flops == 2 * short.flops == 2 * made.flops
    assert any("equal parameters" in note for note in made.notes)
    assert comparison.comparison(found[:1]) is None
    html = page.page(found, None, "")
    assert {"frontier_flops", "frontier_params"} <= drawn(html)


def test_a_frontier_has_what_nothing_surpasses():
    assert comparison.frontier([(1, 5), (2, 6), (3, 4), (3, 3), (4, 3)]) == [0, 3]


def test_kinds_of_tokens_follow_from_the_text_before():
    pieces = [list("a b1,\n"), ["the", " cat", "s", ".", "", " "]]
    kinds = reading._kinds(pieces, np.zeros((2, 6), int), 256)
    names = [[reading.KINDS[kind] for kind in row] for row in kinds]
    start, inside = "start of a word", "inside a word"
    assert names[0] == [start, "space", start, "digit", "punctuation", "line break"]
    assert names[1] == [start, start, inside, "punctuation", "part of a character", "space"]


@pytest.mark.parametrize(
    "options",
    [
        ["--workdir=missing"],
        ["--workdir=empty"],
        ["--workdir=run", "--compare=run"],
        ["--workdir=run", "--compare=missing"],
        ["--workdir=run", "--out=page.txt"],
        ["--workdir=run", "--out=nowhere/page.html"],
        ["--workdir=run", "--out=folder.html"],
        ["--workdir=gs://bucket/run"],
    ],
)
def test_what_cannot_be_reported_is_one_line(workdir, monkeypatch, capsys, options):
    monkeypatch.chdir(workdir.parent)
    (workdir.parent / "empty").mkdir()
    (workdir.parent / "folder.html").mkdir()
    assert cli.main(["report", *options]) == 2
    assert_one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_a_watched_run_is_written_again_until_it_ends(workdir, monkeypatch):
    path, said, looks = workdir / "metrics.jsonl", [], []
    before = path.read_text()
    (workdir / "end.json").unlink()
    path.write_text("")

    def is_live(workdir):
        looks.append(path.write_text(before))
        return len(looks) < 8

    monkeypatch.setattr(record.place.of(workdir), "is_live", is_live)
    out = workdir / "report.html"

    def say(line):
        said.append(line)
        address = line.partition(": ")[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.read() == out.read_bytes()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}metrics.jsonl", timeout=10)

    serving.watch(serving.Report([workdir], out), say, every=0.01)
    assert len(said) == 1 and "location.reload" not in out.read_text()
    assert "loss" in drawn(out.read_text())
