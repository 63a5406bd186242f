"""What the length generalisation benchmark feeds its models: rows say what their lines say."""

import numpy as np
import pytest

from tests.helpers.benchmarks import benchmark

task = benchmark("length_generalisation")

LINES = ["=\ta\ta\n", "v\t( not b )\t( b ( or c ) )\n", "<\t( d ( and e ) )\td\n"]


def read(ids):
    return " ".join(task.VOCAB[number] for number in ids)


def test_tokens_read_as_the_line_and_the_answer_is_not_among_them():
    for line in LINES:
        relation, left, right = line.rstrip("\n").split("\t")
        tokens, answer = task.encode(line)
        assert read(tokens) == f"{left} ~ {right} ?"
        assert task.VOCAB[answer] == f"relation {relation}"
        assert answer not in tokens


def test_symbols_have_numbers_of_their_own():
    assert len(set(task.VOCAB)) == len(task.VOCAB) == 21


@pytest.mark.parametrize("line", ["=\ta\n", "=\ta\tg\n", "~\ta\ta\n", "=\t(a)\ta\n"])
def test_other_lines_are_refused(line):
    with pytest.raises(ValueError, match=r"^line: got .*, takes "):
        task.encode(line)


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("shape", [(1, 13), (2, 16), (3, 40)])
def test_batches_hold_every_example_once_and_in_order(shape, offset):
    examples = [task.encode(line) for line in LINES * 2]
    found = []
    for batch in task.packed(iter(examples), shape, offset, np.random.default_rng(0)):
        assert {leaf.shape for leaf in batch.values()} == {shape}
        for row in range(shape[0]):
            segments = batch["segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                (at,) = np.nonzero(segments == segment)
                positions = batch["positions"][row, at]
                assert (np.diff(at) == 1).all() and (np.diff(positions) == 1).all()
                assert 0 <= positions[0] <= offset
                assert batch["weights"][row, at].tolist() == [0.0] * (len(at) - 1) + [1.0]
                found.append((batch["tokens"][row, at].tolist(), batch["targets"][row, at[-1]]))
        padding = batch["segment_ids"] == 0
        assert not batch["tokens"][padding].any() and not batch["weights"][padding].any()
    assert found == examples


def test_offsets_differ_between_examples():
    examples = [task.encode(LINES[0])] * 100
    (batch,) = task.packed(examples, (1, 400), 9, np.random.default_rng(0))
    assert set(batch["positions"][0, ::4].tolist()) == set(range(10))


def test_numbers_of_operators_are_drawn_equally_often():
    groups = [[task.encode(line)] * size for line, size in zip(LINES, (1, 10, 100), strict=True)]
    drawn = task.forever(groups, np.random.default_rng(0))
    answers = [next(drawn)[1] for _ in range(600)]
    for group in groups:
        assert 150 < answers.count(group[0][1]) < 250
