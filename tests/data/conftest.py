import gzip
import json

import pytest
import zstandard

from recursia.data.packing import Writer
from recursia.data.tokenizer import ByteTokenizer
from recursia.errors import DataError

PACK = {"": lambda raw: raw, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.fixture
def put(tmp_path):
    """Writes a file of text, of bytes, or of one JSON line for each text of a list."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text}) + "\n" for text in content)
        raw = content.encode() if isinstance(content, str) else content
        ending = path.suffix if path.suffix in PACK else ""
        path.write_bytes(PACK[ending](raw) if isinstance(content, str) else raw)
        return str(path)

    return write


@pytest.fixture
def pack(tmp_path):
    """Packs documents of the training (and validation) split as bytes; returns the folder."""

    def write(name, train, validation=("v",), shard_tokens=1 << 20, tokenizer=None):
        tokenizer = tokenizer or ByteTokenizer()
        with Writer(str(tmp_path / name), tokenizer, shard_tokens) as writer:
            for split, texts in (("train", train), ("validation", validation)):
                for text in texts:
                    writer.add(split, tokenizer.encode(text), len(text.encode()))
            writer.finish({"sources": [], "options": {}})
        return str(tmp_path / name)

    return write


@pytest.fixture
def refused(tmp_path):
    """Calls, expects one line and exit code 3 with every part named, and nothing written."""

    def check(call, *parts, kind=DataError, code=3):
        listing = lambda: sorted(
            (str(p), p.is_file() and p.stat().st_size) for p in tmp_path.rglob("*")
        )
        before = listing()
        with pytest.raises(kind) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message and caught.value.exit_code == code
        for part in parts:
            assert str(part) in message, message
        assert listing() == before
        return message

    return check
