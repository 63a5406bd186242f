"""Which checkpoints are kept: the latest, every so many steps, and the best."""

import math

import pytest

from recursia.workdir.history import History

STEPS = [10, 20, 30, 40, 50, 60]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "checkpoints.jsonl")


@pytest.mark.parametrize(
    ("last", "every", "best", "kept"),
    [
        (1, 0, 0, [60]),
        (2, 0, 0, [50, 60]),
        (1, 20, 0, [20, 40, 60]),
        (1, 0, 1, [30, 60]),
        (1, 50, 2, [20, 30, 50, 60]),
        (9, 0, 0, STEPS),
    ],
)
def test_the_latest_every_so_many_and_the_best_are_kept(history, last, every, best, kept):
    losses = {20: 1.5, 30: 1.0, 40: math.nan, 50: 9.0, 55: 0.1, 60: 1e6}
    for step, loss in losses.items():
        history.add(step, validation_loss=loss)
    surplus = history.surplus(STEPS, last, every, best)
    assert [step for step in STEPS if step not in surplus] == kept


def test_a_history_is_read_as_it_was_written(history):
    for step in (10, 20):
        history.add(step, bytes=5)
        history.add(step, validation_loss=step / 10)
    again = History(history.path)
    assert again.saved == history.saved and list(again.saved) == [10, 20]
    assert again.losses == {10: 1.0, 20: 2.0}


def test_a_row_that_was_cut_short_loses_itself_alone(history):
    history.add(10, bytes=5)
    with history.path.open("a") as file:
        file.write('{"step": 20, "by')
    History(history.path).add(30, bytes=5)
    assert list(History(history.path).saved) == [10, 30]


def test_rows_that_are_none_are_skipped(history):
    history.path.write_text('[]\n3\nnull\n{"step": "x"}\n\xff\n{"step": 1, "bytes": 2}\n')
    assert list(History(history.path).saved) == [1]


def test_a_history_that_cannot_be_written_stops_nothing(tmp_path):
    History(tmp_path / "none" / "checkpoints.jsonl").add(1, bytes=2)
