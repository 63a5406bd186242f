import numpy as np
import pytest

from recursia.data.windows import Windows
from recursia.errors import ConfigError

E = 256
A, B, C, D, F, G, H = b"abcdfgh"


def rows(windows):
    return [windows[i] for i in range(len(windows))]


def test_segments_and_positions_restart_at_each_document(pack):
    windows = Windows(pack("p", ["ab", "c", "dfgh"]), "train", 5, keep_tail=True)
    table = [
        {
            "tokens": [A, B, E, C, E],
            "targets": [B, E, C, E, D],
            "segment_ids": [1, 1, 1, 2, 2],
            "positions": [0, 1, 2, 0, 1],
            "weights": [1, 1, 1, 1, 1],
        },
        {
            "tokens": [D, F, G, H, E],
            "targets": [F, G, H, E, E],
            "segment_ids": [1, 1, 1, 1, 0],
            "positions": [0, 1, 2, 3, 0],
            "weights": [1, 1, 1, 1, 0],
        },
    ]
    for row, expected in zip(rows(windows), table, strict=True):
        assert {key: value.tolist() for key, value in row.items()} == expected
        dtypes = {key: value.dtype.name for key, value in row.items()}
        assert dtypes.pop("weights") == "float32" and set(dtypes.values()) == {"int32"}


@pytest.mark.parametrize("shard_tokens", [1, 7, 1000])
@pytest.mark.parametrize("seq_len", [1, 3, 8, 50])
def test_every_token_but_the_first_is_a_target_exactly_once(pack, shard_tokens, seq_len):
    texts = ["x" * n for n in (1, 5, 2, 30, 1, 1, 9)]
    stream = [token for text in texts for token in (*text.encode(), E)]
    windows = Windows(pack("p", texts, shard_tokens=shard_tokens), "train", seq_len, keep_tail=True)
    real = [row["weights"] == 1 for row in rows(windows)]
    gather = lambda key: np.concatenate(
        [row[key][mask] for row, mask in zip(rows(windows), real, strict=True)]
    ).tolist()
    assert gather("targets") == stream[1:] and gather("tokens") == stream[:-1]
    dropped = Windows(windows.reader.directory, "train", seq_len)
    assert len(dropped) == (len(stream) - 1) // seq_len
    for kept, row in zip(rows(windows), rows(dropped), strict=False):
        assert all(np.array_equal(kept[key], row[key]) for key in kept)


@pytest.mark.parametrize("shard_tokens", [1, 7, 1000])
def test_segments_and_positions_equal_a_loop_over_tokens(pack, shard_tokens):
    texts = ["x" * n for n in (1, 5, 2, 30, 1, 1, 9)]
    for row in rows(Windows(pack("p", texts, shard_tokens=shard_tokens), "train", 6)):
        segment, position = 1, 0
        for token, s, p in zip(row["tokens"], row["segment_ids"], row["positions"], strict=True):
            assert (s, p) == (segment, position)
            segment, position = (segment + 1, 0) if token == E else (segment, position + 1)


def test_too_little_text_is_one_line_with_both_numbers(pack, refused):
    folder = pack("p", ["abc"])
    refused(lambda: Windows(folder, "train", 4), "4 tokens", "needs 5")
    assert len(Windows(folder, "train", 4, keep_tail=True)) == 1
    refused(lambda: Windows(folder, "test", 4), "'test'")
    refused(lambda: Windows(folder, "train", 0), "seq_len is 0", kind=ConfigError, code=2)
    with pytest.raises(IndexError):
        Windows(folder, "train", 3)[1]
