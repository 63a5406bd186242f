"""Every file that is read, whole as its writer wrote it, and what reads it."""

import contextlib
import dataclasses
import gzip
import io
import json
import math
import pathlib
import struct
import types
import zipfile
from collections.abc import Callable
from typing import Any

import gguf
import jax
import numpy as np
import zstandard

from recursia import jsonlines
from recursia.convert import arrival, safetensors
from recursia.data import named, verification
from recursia.data import tokenizer as tokenizers
from recursia.data.manifest import SPLITS
from recursia.data.packing import Reader, Writer
from recursia.data.tokenizer import ByteTokenizer
from recursia.data.windows import Windows
from recursia.errors import CheckpointError
from recursia.evaluate import parity, rows
from recursia.generate import prompts, serving
from recursia.generate.continuation import Stops
from recursia.generate.sampling import Sampling
from recursia.sweep import directory as sweeps
from recursia.sweep import engines, standing, tables
from recursia.sweep.trial import Trial
from recursia.train import replay
from recursia.workdir import digests, directory, ending
from recursia.workdir.history import History
from tests.helpers.runs import values


@dataclasses.dataclass
class Case:
    """A file and its reader.

    Attributes:
      path: of the file, which is there.
      read: reads it.
    """

    path: pathlib.Path
    read: Callable[[], Any]


def prepared(folder):
    """Writes prepared data of two shards; returns its manifest as text."""
    with Writer(str(folder), ByteTokenizer(), 6) as writer:
        for text in ("abc", "defg", "h"):
            writer.add("train", ByteTokenizer().encode(text), len(text))
        writer.finish({"sources": [{"split": "train", "name": "a.txt", "sha256": "0"}]})
    return (folder / "manifest.json").read_text()


def read_rows(folder):
    """Reads every row of prepared data, whose numbers are in their ranges."""
    split = Windows(str(folder), "train", 2)
    for at in range(len(split)):
        row = split[at]
        assert row["tokens"].min() >= 0 and row["tokens"].max() < split.reader.vocab_size
        assert row["segment_ids"].max() <= 3 and row["positions"].max() < 2
    assert Reader(str(folder)).tokenizer_name


def of_data(name):
    def made(folder):
        prepared(folder / "data")
        path = folder / "data" / name
        return Case(path, lambda: read_rows(folder / "data"))

    return made


def known(folder):
    prepared(folder / "data")
    path = folder / verification.FILE
    check = lambda: verification.check((str(folder / "data"),), path, SPLITS)
    verification.remember(path, check())
    return Case(path, check)


def of_tokenizer(name):
    def made(folder):
        tokenizers.from_spec("bpe:260", lambda: iter(["low lower lowest"])).save(str(folder))
        return Case(folder / name, lambda: tokenizers.load(str(folder)))

    return made


def gpt2(name):
    def made(folder):
        (folder / "encoder.json").write_text('{"a": 0, "b": 1, "ab": 2, "</s>": 3}')
        (folder / "vocab.bpe").write_text("#version\na b\n")
        read = lambda: tokenizers.from_spec(str(folder), lambda: iter(()))
        return Case(folder / name, read)

    return made


def config(folder):
    (folder / "config.json").write_text(json.dumps(values(folder)))
    return Case(folder / "config.json", lambda: directory.recorded(folder))


def metrics(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\n')
    return Case(folder / "metrics.jsonl", lambda: list(jsonlines.values(folder / "metrics.jsonl")))


def history(folder):
    (folder / "rows.jsonl").write_text('{"step": 1, "bytes": 9}\n{"step": 2, "validation_loss": 3}')
    read = lambda: History(folder / "rows.jsonl").surplus([1, 2], 1, 2, 1)
    return Case(folder / "rows.jsonl", read)


def replayed(folder):
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5, "gradient_norm": "nan", "validation_loss": 3}\n')

    def read():
        found = standing.of("t", folder)
        tables.standings([(Trial("t", "mor:tiny", {}), found)])
        assert all(math.isfinite(s) for s in replay._records(folder, 1, 0)), found

    return Case(path, read)


def end(folder):
    ending.write(folder, 3, "shard 7")
    return Case(folder / ending.FILE, lambda: ending.read(folder))


def sealed(folder):
    (folder / "a").write_bytes(b"1")
    digests.seal(folder)
    return Case(folder / digests.FILE, lambda: digests.check(folder))


def documents(ending: str, packed: Callable[[bytes], bytes] = bytes):
    def made(folder):
        raw = b'{"text": "abc"}\n{"text": "\xc3\xa9"}\n' if ".jsonl" in ending else b"ab\n\xc3\xa9"
        (path := folder / f"documents{ending}").write_bytes(packed(raw))

        def read():
            for on_error in ("skip", "stop"):
                found = named.of(str(path)).documents(on_error=on_error, warn=False)
                assert all(isinstance(c, str) for document in found for c in document.chunks())

        return Case(path, read)

    return made


def npy(array):
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.asarray(array), allow_pickle=True)
    return raw.getvalue()


def zipped(members):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return raw.getvalue()


def parity_file(folder):
    array = npy(np.arange(6.0).reshape(2, 3))
    members = dict.fromkeys(("tokens", "logits", "cross_entropy"), array) | {
        "family": npy("mor"),
        "config": npy("{}"),
    }
    (folder / "a.npz").write_bytes(zipped(members))
    return Case(folder / "a.npz", lambda: parity.read(str(folder / "a.npz")))


def tensors(folder):
    arrays = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    safetensors.write(folder, {n: a.shape for n, a in arrays.items()}, arrays.items())

    def read():
        found = safetensors.read(folder)
        assert all(isinstance(found[name].sum(), np.generic) for name in found)

    return Case(folder / safetensors.FILE, read)


def llama():
    """Returns the shapes of a tiny Llama's arrays by layer, with names of GGUF."""
    norms, square = dict.fromkeys(("attn_norm", "ffn_norm"), (4,)), (4, 4)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return norms | dict.fromkeys(names, square)


def gguf_file(folder):
    writer = gguf.GGUFWriter(path := folder / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(4)
    writer.add_feed_forward_length(4)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    shapes = {f"blk.0.{name}.weight": shape for name, shape in llama().items()}
    shapes |= {"token_embd.weight": (4, 4), "output_norm.weight": (4,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Case(path, lambda: arrived(path))


def llama2c(folder):
    shapes = [(4, 4), *llama().values(), (4,), (8, 1), (8, 1)]
    raw = struct.pack("7i", 4, 4, 1, 2, 2, 4, 8)
    raw += np.ones(sum(map(np.prod, shapes)), np.float32).tobytes()
    (folder / "model.bin").write_bytes(raw)
    pieces = enumerate((b"<unk>", b"<s>", b"</s>", b"a"))
    scores = [struct.pack("<fi", -i, len(piece)) + piece for i, piece in pieces]
    (folder / "tokenizer.bin").write_bytes(b"".join([struct.pack("i", 5), *scores]))
    return Case(folder / "model.bin", lambda: arrived(folder / "model.bin"))


def scored(folder):
    case = llama2c(folder)
    return Case(folder / "tokenizer.bin", case.read)


def huggingface(folder):
    theirs = {
        **dict(model_type="llama", vocab_size=4, hidden_size=4, intermediate_size=4),
        **dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=2),
        **dict(rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=8),
        **dict(tie_word_embeddings=True, hidden_act="silu"),
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")

    def read():
        if arrival.is_there(folder):
            arrival.find(folder)

    return Case(folder / "config.json", read)


def arrived(path):
    """Reads settings, vocabulary and arrays."""
    found = arrival.find(path)
    assert arrival.tokenizer(found).vocab_size <= found.config.vocab_size
    assert jax.tree.leaves(arrival.laid(found))


def tasks(folder):
    lines = ('{"query": "a", "choices": ["b", "c"], "gold": 0}', '{"query": "a", "target": "b"}')
    lines += ('{"contexts": ["a", "b"], "target": "c", "gold": 1}',)
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    return Case(
        folder / "tasks.jsonl", lambda: list(rows.read(str(folder / "tasks.jsonl"), rows.checked))
    )


def requests(folder):
    lines = ('{"prompt": "It was", "id": 7, "num_tokens": 3}', '{"prompt": "a", "stop": ["\\n"]}')
    lines += ('{"prompt": "b", "temperature": 0.5, "top_k": 3, "top_p": 0.5, "seed": 1}',)
    (folder / "requests.jsonl").write_text("\n".join(lines))
    run = types.SimpleNamespace(train=types.SimpleNamespace(seq_len=16))
    trained: Any = types.SimpleNamespace(tokenizer=ByteTokenizer(), run=run)
    way = prompts.Way(4, 1, Sampling(), Stops(()), 0)
    read = lambda: serving.read(folder / "requests.jsonl", trained, way)
    return Case(folder / "requests.jsonl", read)


def published(folder):
    tensors(folder)
    heads = dict(num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4)
    llama = dict(num_hidden_layers=2, hidden_size=4, intermediate_size=4, vocab_size=8, **heads)
    theirs = {
        "llama": llama,
        "recursive": {"num_recursion": 2, "sharing": "cycle"},
        "mor": {"type": "expert", "capacity": "1,1", "expert": {"alpha": 0.1}},
    }
    (folder / "config.json").write_text(json.dumps(theirs))

    def read():
        with contextlib.suppress(CheckpointError):  # the arrays are none of its
            arrival.find(folder)

    return Case(folder / "config.json", read)


def submission(folder):
    (path := folder / engines.SUBMISSIONS / "0.json").parent.mkdir()
    path.write_text('{"name": "sweep-0", "tasks": ["t", "u"], "job": "17"}')
    return Case(path, lambda: engines.jobs(folder))


def sweep(folder):
    declared = dict(config="a.py", digest="0", overrides={"train.seed": "1"}, is_search=False)
    plan = {**declared, "trials": ["t"], "how": {"limit": 1}}
    (folder / sweeps.SWEEP).write_text(json.dumps(plan))
    return Case(folder / sweeps.SWEEP, lambda: sweeps.read(folder))


def trial(folder):
    case = sweep(folder)
    (path := folder / sweeps.TRIALS / "t" / sweeps.TRIAL).parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"config": "mor:tiny", "overrides": {"train.seed": 1}, "labels": {}})
    )
    return Case(path, lambda: sweeps.read(case.path.parent).trial("t").run())


CASES: dict[str, Callable[[pathlib.Path], Case]] = {
    "manifest": of_data("manifest.json"),
    "tokens": of_data("train-00000.tokens"),
    "documents": of_data("train-00000.documents"),
    "known": known,
    "tokenizer": of_tokenizer("tokenizer.json"),
    "tokenizer_config": of_tokenizer("tokenizer_config.json"),
    "encoder": gpt2("encoder.json"),
    "merges": gpt2("vocab.bpe"),
    "config": config,
    "metrics": metrics,
    "history": history,
    "replayed": replayed,
    "end": end,
    "digests": sealed,
    "txt": documents(".txt"),
    "jsonl": documents(".jsonl"),
    "gz": documents(".jsonl.gz", gzip.compress),
    "zst": documents(".jsonl.zst", zstandard.compress),
    "parity": parity_file,
    "safetensors": tensors,
    "gguf": gguf_file,
    "llama2c": llama2c,
    "scored": scored,
    "huggingface": huggingface,
    "published": published,
    "tasks": tasks,
    "requests": requests,
    "sweep": sweep,
    "submission": submission,
    "trial": trial,
}
JSON = ("manifest", "known", "tokenizer", "tokenizer_config", "encoder", "config", "end")
JSON += ("huggingface", "published", "sweep", "submission", "trial")  # whose file is one JSON text
