"""`import recursia`: a run, a folder or a preset as one object, and one line for a mistake."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import recursia
from recursia import cli
from recursia import params as parameters
from recursia.errors import ConfigError, DataError, UserError
from recursia.model import specs as specs_of
from tests.helpers.checkpoints import LLAMA, write
from tests.helpers.refusals import refused
from tests.helpers.runs import hashes, tiny_run, values, write_config, write_text
from tests.helpers.tiny import assert_close

TEXT = "blue ten red green"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with `run`, `hf`, a folder of Hugging Face, and `text.txt`."""
    folder = tmp_path_factory.mktemp("model")
    write_text(folder)
    (folder / "text.txt").write_text(TEXT * 3)
    path = write_config(folder / "tiny.py", values(folder, train={"num_steps": 2}))
    assert cli.main(["train", f"--config={path}", f"--workdir={folder / 'run'}"]) == 0
    write(folder / "hf", LLAMA)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return recursia.load(folder / "run")


def test_jax_is_imported_when_a_name_is_used():
    code = "import sys, recursia; print('jax' in sys.modules, 'load' in dir(recursia))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False True\n"
    assert recursia.load is recursia.loaded.load
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        recursia.lod  # noqa: B018


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["run", "hf"])
def test_a_text_scores_as_in_eval(folder, command, name):
    model, before = recursia.load(folder / name), hashes(folder)
    place = (f"--workdir={folder / name}", f"--text={folder / 'text.txt'}")
    table = json.loads(command("eval", *place, "--json")[0])["table"]
    assert hashes(folder) == before
    for row in table:
        score = model.score(TEXT * 3, mode=row["mode"])
        assert score.tokens == row["tokens"]
        assert score.nats_per_token == pytest.approx(row["nats_per_token"], rel=1e-5)
        assert score.bits_per_byte == pytest.approx(row["bits_per_byte"], rel=1e-5)
        assert score.mean_depth == pytest.approx(row["mean_depth"])
    short, end = TEXT[:12], model.tokenizer.end_of_text
    ids = [*model.tokenizer.encode(short), end]
    score = model.score(short)
    # The end of the text is predicted and not read.
    assert model(ids[:-1]).nats.sum() < model(ids).nats.sum()
    if table[0]["mean_depth"] == 1:
        assert model(ids).nats.sum() / 12 == pytest.approx(score.nats_per_token, rel=1e-5)
    else:
        assert model(ids[:-1]).mean_depth == pytest.approx(score.mean_depth)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["run", "hf"])
def test_text_is_continued_as_by_generate(folder, command, name):
    model, how = recursia.load(folder / name), {"temperature": 0.7, "top_k": 9, "seed": 3}
    pieces = list(model.stream("red ", 8, **how))
    text = "".join(pieces)
    assert text == model.generate("red ", 8, **how) and len(pieces) > 1
    options = [f"--{option}={value}" for option, value in how.items()]
    out, _ = command(
        "generate", f"--workdir={folder / name}", "--prompt=red ", "--num_tokens=8", *options
    )
    assert out.rstrip("\n") == ("red " + text).rstrip("\n")
    assert model.generate("red ", 8, stop=text[3:], **how) == text[: text.index(text[3:])]
    warm = [model.generate("red ", 8, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_texts_and_their_tokens_are_the_same(model):
    texts = ["blue ten", "red"]
    ids = [list(text.encode()) for text in texts]
    both, by_ids = model(texts), model(ids)
    assert np.array_equal(both.logits, by_ids.logits)
    assert both.tokens.shape == both.is_token.shape == (2, 8)
    assert both.is_token.sum(1).tolist() == [8, 3]
    for tokens in (ids[0], np.array([ids[0]]), jax.numpy.array(ids[0])):
        assert np.array_equal(model(tokens).logits, model("blue ten").logits)
    assert both.is_taken.shape == (2, 2, 8) and both.states.shape == (2, 2, 8, 16)


def test_another_depth_is_another_model(model):
    shallow = model.at_depth(1)
    assert (shallow.num_recursions, model.num_recursions) == (1, 2)
    state = model("red blue").states[0]
    np.testing.assert_allclose(shallow("red blue").states[0], state, rtol=1e-5, atol=1e-6)
    assert np.allclose(model.lens("red blue")[0], shallow("red blue").logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_preset_is_what_training_starts_from(folder):
    model = recursia.preset(str(folder / "tiny.py"), {"depth.capacity": (1, 0.25)}, seed=5)
    run = tiny_run(folder)
    specs = specs_of(run.model.sized(257))
    assert_close(model.params, parameters.init(specs, jax.random.key(5)), n=1)
    assert model.config.depth.capacity == (1.0, 0.25)
    assert (
        model.num_params
        == parameters.count(specs)
        == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    )
    assert model("red blue").is_taken[1].sum() == 2
    assert "257" not in repr(model) and "up to 2 recursions" in repr(model)


def test_fields_of_depth_may_change(folder):
    loaded = recursia.load(folder / "run", overrides={"depth.capacity": [1, 0.125]})
    assert loaded("red blue").is_taken[1].sum() == 1
    assert recursia.load(folder / "run", step=2).params.keys() == loaded.params.keys()


def test_a_command_runs_here_or_raises_what_it_would_end_with(folder, capsys):
    recursia.command(f"eval --workdir={folder / 'run'} --text='{folder / 'text.txt'}' --json")
    assert json.loads(capsys.readouterr().out)["table"][0]["tokens"] == len(TEXT * 3)
    wrong = {
        "eval --workdir=none": (ConfigError, "none", "is not there"),
        "evil": (ConfigError, "evil"),
        "eval --workdir='run": (ConfigError, "eval --workdir='run", "quotation"),
        f"parity {folder / 'text.txt'}": (UserError, "text.txt"),
    }
    for line, (kind, *parts) in wrong.items():
        with refused(kind, *parts):
            recursia.command(line)
    recursia.command("eval --help")


LOADED = {
    "no folder": (lambda f: recursia.load(f / "none"), ConfigError, "is not there"),
    "nothing in it": (lambda f: recursia.load(f / "run" / "data"), ConfigError, "neither a run"),
    "no such step": (lambda f: recursia.load(f / "run", 9), UserError, "9"),
    "a step of no run": (lambda f: recursia.load(f / "hf", 9), ConfigError, "--step=9"),
    "a field of training": (
        lambda f: recursia.load(f / "run", overrides={"train.seq_len": 8}),
        ConfigError,
        "train.seq_len",
    ),
    "no file": (lambda f: recursia.preset("mr:tiny"), ConfigError, "did you mean 'mor'?"),
    "no preset": (lambda f: recursia.preset("mor:tyny"), ConfigError, "did you mean 'tiny'?"),
    "no field": (lambda f: recursia.preset("mor:tiny", {"dept": 1}), ConfigError, "dept"),
    "no seed": (lambda f: recursia.preset("mor:tiny", seed=-1), ConfigError, "seed: got -1"),
    "no tokenizer": (
        lambda f: recursia.preset("mor:tiny", tokenizer=str(f / "none")),
        DataError,
        "none",
    ),
}
ASKED = {
    "no text": (lambda m: m(""), DataError, "0 tokens", "16"),
    "nothing": (lambda m: m([]), DataError, "0 tokens"),
    "no tokens": (lambda m: m([[1, 2], []]), DataError, "text 2 of 2", "0 tokens"),
    "too long": (lambda m: m("x" * 17), DataError, "17 tokens", "16 of the context"),
    "no such token": (lambda m: m([1, 257]), DataError, "257", "256"),
    "a negative token": (lambda m: m([-1]), DataError, "-1"),
    "fractions": (lambda m: m([0.5]), DataError, "neither text nor token ids"),
    "a number": (lambda m: m(3), DataError, "neither text nor token ids"),
    "text and tokens": (lambda m: m(["a", 3]), DataError, "a list of texts"),
    "no mode": (lambda m: m("a", mode="train"), ConfigError, "'train'", "'causal'"),
    "no weights": (lambda m: m.at_depth(3), ConfigError, "depth 3", "take at most 2"),
    "no depth": (lambda m: m.at_depth("all"), ConfigError, "depth: got 'all'"),
    "no prompt": (lambda m: m.generate(""), DataError, "0 tokens"),
    "a prompt too long": (lambda m: m.generate("x" * 17), DataError, "17 tokens"),
    "a prompt of tokens": (lambda m: m.generate([1]), DataError, "prompt: got list"),
    "an empty stop": (lambda m: m.generate("a", stop=[""]), ConfigError, "stop: "),
    "no count": (lambda m: m.generate("a", 0), ConfigError, "num_tokens: got 0"),
    "too cold": (lambda m: m.stream("a", temperature=-1), ConfigError, "temperature: got -1"),
    "nothing to score": (lambda m: m.score(""), DataError, "0 tokens"),
    "a number to score": (lambda m: m.score(3), DataError, "int"),
}


@pytest.mark.parametrize(("wrong", "kind", "parts"), [(w, k, p) for w, k, *p in LOADED.values()])
def test_what_cannot_be_loaded_is_one_line(folder, wrong, kind, parts):
    with refused(kind, *parts):
        wrong(folder)


@pytest.mark.parametrize(("wrong", "kind", "parts"), [(w, k, p) for w, k, *p in ASKED.values()])
def test_what_a_model_cannot_answer_is_one_line(model, wrong, kind, parts):
    with refused(kind, *parts):
        wrong(model)


def test_a_preset_without_its_data_takes_tokens():
    small = {"num_layers": 1, "block.embed_dim": 16, "block.mlp_dim": 16, "vocab_size": 40}
    model = recursia.preset("vanilla:135m", small)
    assert model.tokenizer is None and model([1, 2]).logits.shape == (1, 2, 40)
    for wrong in (lambda: model("a"), lambda: model.generate("a"), lambda: model.score("a")):
        with refused(ConfigError, "vanilla:135m", "token ids"):
            wrong()
