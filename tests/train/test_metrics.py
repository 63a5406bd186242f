"""What a run writes: rows, samples, curves, its configuration; and what a resume keeps of them."""

import json
import math

import pytest

from recursia import config, jsonlines, settings
from recursia.train.writer import Writer
from tests.helpers.runs import SPEED, STEPS, TYPED, rows, saved

TEXTS = [
    "a\u2028b",
    "a\u2029b",
    "a\x85b",
    "a\x0bb\x0c",
    "a\x1c\x1d\x1eb",
    'a\nb"\\',
    "a\r\nb",
    "é漢🙂",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_sample_survives_a_resume(tmp_path, text):
    writer = Writer(tmp_path, 0)
    for step in (1, 2):
        writer.sample(step, text, text + text)
        writer.write({"step": step, "loss": 0.1})
    writer.close()
    before = (tmp_path / "samples.jsonl").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    assert before[0].count(b"\n") == 2
    Writer(tmp_path, 2).close()
    assert before == tuple((tmp_path / f"{n}.jsonl").read_bytes() for n in ("samples", "metrics"))
    Writer(tmp_path, 1).close()
    (row,) = jsonlines.values(tmp_path / "samples.jsonl")
    assert row == {"step": 1, "prompt": text, "text": text + text}


def test_what_is_no_row_is_dropped(tmp_path):
    whole = jsonlines.line({"step": 1, "loss": 0.5})
    broken = ['{"step": "1"}\n', "[1]\n", "\n", '{"loss": 1}\n', "[" * 100_000 + "\n", '{"step": 1']
    (tmp_path / "metrics.jsonl").write_text("".join([broken[0], whole, *broken[1:]]))
    Writer(tmp_path, 5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    assert json.loads(whole)["loss"] == 0.5


def test_training_rows_hold_what_was_measured(unbroken):
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().split("\n")[:-1]]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    names = {"loss", "loss_router", "mean_depth", "gradient_norm", "learning_rate"}
    arrays = {"router_agreement", "router_cross_entropy", "router_gate", "tokens_kept"}
    for line in trained:
        assert names | arrays <= line.keys()
        assert all(len(line[name]) == 2 for name in arrays)
        assert line["mean_depth"] == 1.5 and line["tokens_kept"] == [1.0, 0.5]
    # The first step holds the compilation, and says nothing about speed.
    assert all(set(SPEED) <= line.keys() for line in trained[1:])
    for line in trained[1:]:
        used = [line[name] for name in SPEED]
        assert all(math.isfinite(value) and value > 0 for value in used)
        assert line["flops_utilization_6n"] != line["flops_utilization"]
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_validation_rows_say_what_causal_decisions_cost(unbroken):
    checked = [row for row in rows(unbroken) if "validation_loss" in row]
    assert [row["step"] for row in checked] == [3, 6]
    for row in checked:
        for mode in ("", "_causal"):
            assert len(row[f"validation_lens_loss{mode}"]) == 2
            # Without a coda, what the last recursion leaves is what the head reads.
            last = row[f"validation_lens_loss{mode}"][-1]
            assert abs(last - row[f"validation_loss{mode}"]) < 1e-5
            assert row[f"validation_bits_per_byte{mode}"] > 0
        assert row["validation_mean_depth"] == 1.5  # of 2 tokens beside padding, 1 goes on
        assert 1 <= row["validation_mean_depth_causal"] <= 2


def test_samples_continue_every_prompt(unbroken):
    samples = rows(unbroken, "samples.jsonl")
    assert [(s["step"], s["prompt"]) for s in samples] == [
        (step, prompt) for step in (3, 6) for prompt in ("red", "blue ")
    ]
    assert all(isinstance(sample["text"], str) for sample in samples)


def test_config_json_makes_the_same_run_and_overrides_json_is_what_was_typed(folder, unbroken):
    assert json.loads((unbroken / "overrides.json").read_text()) == TYPED
    recorded = json.loads((unbroken / "config.json").read_text())
    again = config.build(settings.Run, recorded, "config")
    assert again == config.load(str(folder / "tiny.py"), TYPED)
    assert again.model.depth.alpha == 0.2 and again.data.on_error == "skip"


def test_tensorboard_files_hold_the_curves(unbroken):
    files = list((unbroken / "tensorboard").glob("events.out.tfevents.*"))
    raw = b"".join(path.read_bytes() for path in files)
    for tag in (b"loss", b"validation_loss", b"router_gate/1", b"tokens_per_second"):
        assert tag in raw


def test_nothing_that_is_written_can_run_code(unbroken):
    for path in unbroken.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:2]
            assert path.suffix not in (".pkl", ".pickle", ".pt", ".npy", ".npz"), path
            assert not (start[:1] == b"\x80" and start[1:] <= b"\x05"), path


def test_only_the_latest_checkpoints_stay(unbroken):
    assert saved(unbroken) == [4, 6]
    assert {path.name for path in (unbroken / "checkpoints").iterdir()} == {"4", "6"}
