"""Models side by side: equal FLOPs, known vocabularies, a table that fits."""

import dataclasses
import json

import pytest

from recursia import accounting, budget, config
from recursia.errors import ConfigError

FIXED_KEYS = (
    "unique_parameters applied_parameters forward_flops_per_token training_flops_per_token "
    "mor_flops_per_token cache_bytes_per_token optimizer_bytes"
).split()
WORDS = ("name", "depth_kind", "notes")


@pytest.fixture(scope="module")
def runs():
    sharing = {"model.kv.kv_sharing": "first_recursion"}
    return {
        "vanilla:360m": config.load("vanilla:360m", {}),
        "recursive:360m": config.load("recursive:360m", {}),
        "mor:360m": config.load("mor:360m", {"train.batch_size": "512"}),
        "configs/mor.py:360m": config.load("mor:360m", sharing),
    }


@pytest.fixture(scope="module")
def rows(runs):
    return budget.compare(runs, "flops")


def test_matched_steps_spend_the_references_flops_within_half_a_step(rows):
    for key, total in (("matched", "training_flops"), ("mor_matched", "mor_flops")):
        for row in rows:
            a_step = row[total] / row["num_steps"]
            left = row[f"{key}_steps"] * a_step - rows[0][total]
            assert abs(left) <= 0.5 * a_step
            assert row[f"{key}_error"] == pytest.approx(left / rows[0][total], abs=1e-12)
    assert rows[0]["matched_steps"] == rows[0]["mor_matched_steps"] == 9438
    assert rows[1]["mor_matched_steps"] == 9438
    assert rows[2]["mor_matched_steps"] == round(2 * 14159.8)  # half the batch
    assert rows[3]["mor_matched_steps"] == 14672


@pytest.mark.slow
def test_totals_are_steps_of_sequences(runs):
    for run, row in zip(runs.values(), budget.compare(runs, "none"), strict=True):
        cost = accounting.budget(run.model.sized(49152), 2048, run.train.rematerialisation)
        assert row.items() >= dataclasses.asdict(cost).items()
        assert row["tokens_per_step"] == run.train.batch_size * 2048
        tokens = run.train.num_steps * row["tokens_per_step"]
        assert row["training_flops"] == pytest.approx(tokens * row["training_flops_per_token"])
        assert row["mor_flops"] == pytest.approx(tokens * row["mor_flops_per_token"])
        assert "matched_steps" not in row


def test_rows_are_json_with_the_fixed_keys(rows):
    for row in rows:
        assert set(FIXED_KEYS) < set(row)
        assert json.loads(json.dumps(row)) == row
        assert all(type(value) in (int, float) for key, value in row.items() if key not in WORDS)


def test_vocabulary_is_the_tokenizers_unless_given():
    size = lambda *pairs: budget.vocab_size(config.load("vanilla:tiny", dict(pairs)))
    assert size() == 257
    assert size(("data.tokenizer", "bpe:1024")) == 1024
    assert size(("data.tokenizer", "bpe:1024"), ("model.vocab_size", "300")) == 300
    with pytest.raises(ConfigError, match="'many' is not a number"):
        size(("data.tokenizer", "bpe:many"))


def test_table_of_four_models_fits_100_columns(rows):
    table, _, notes = budget.render(rows).partition("\n\n")
    head, *lines = table.split("\n")
    unshown = {name for name in budget.IF_ANY if not any(row.get(name) for row in rows)}
    assert len(lines) == len(rows[0]) - len(WORDS) - len(unshown & rows[0].keys())
    assert max(map(len, notes.split("\n"))) <= 100
    assert [note.partition(":")[0] for note in notes.split("\n") if ":" in note] == [
        "applied",
        "executed",
        "6N",
        "step_law",
        "mor",
    ]
    assert max(map(len, lines)) == len(head) <= 100
    assert head.split() == ["vanilla:360m", "recursive:360m", "mor:360m", "…s/mor.py:360m"]
    cells = {line[:34].strip(): line[34:].split("  ") for line in lines}
    shown = {label: [cell.strip() for cell in row if cell] for label, row in cells.items()}
    assert shown["unique parameters"] == ["361.8 M", "165.2 M", "165.2 M", "165.2 M"]
    assert shown["cache bytes per token"][0] == "40.00 KiB"
    assert shown["mor matched steps"] == ["9,438", "9,438", "28,320", "14,672"]
    assert shown["mor flops"][0] == "16.50 E"
    assert shown["mean depth"][1] == "3.000"


def test_what_does_not_apply_is_left_out():
    labels = lambda *names: "\n".join(
        line[:34]
        for line in budget.render(
            budget.compare({name: config.load(name, {}) for name in names}, "flops")
        ).split("\n")
    )
    alone = labels("vanilla:tiny")
    assert not any(word in alone for word in ("applied", "mean depth", "mor", "matched steps"))
    assert "6N flops per token" in alone and "matched error" in alone
    shared = labels("vanilla:tiny", "recursive:tiny")
    assert all(word in shared for word in ("applied", "mean depth"))
    assert "mor" not in shared
    routed = labels("vanilla:tiny", "mor:tiny")
    assert all(word in routed for word in ("\nmatched steps", "mor matched steps"))
