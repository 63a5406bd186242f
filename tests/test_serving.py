"""Requests in a file get what their prompts get alone; a line that is none is named."""

import dataclasses
import json
import pathlib

import jax
import pytest

from recursia import sharding
from recursia.data.tokenizer import ByteTokenizer
from recursia.errors import ConfigError, DataError
from recursia.generate import decode, serving
from recursia.generate.continuation import Continuation, Stops, draw
from recursia.generate.prompts import Way, key
from recursia.generate.sampling import Sampling
from recursia.workdir.trained import Trained
from tests.helpers import points
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import draw as draw_weights

CONTEXT = 24
WAY = Way(6, 1, Sampling(0.0), Stops(), seed=3)


def trained(config):
    config = config.sized(ByteTokenizer().vocab_size)
    run = tiny_run(pathlib.Path("."), "fixed")
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, seq_len=CONTEXT))
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    return Trained(run, 1, config, mesh, draw_weights(config), ByteTokenizer(), ())


@pytest.fixture(scope="module")
def model():
    return trained(points.point(depth_="token_choice", num_blocks=1))


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "requests.jsonl"
        as_text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(as_text) + "\n")
        return path

    return write


def alone(model, prompt, way):
    """Returns what a prompt gets that is continued by itself."""
    text = Continuation(model.tokenizer, model.tokenizer.encode(prompt), way.stops, way.num_tokens)
    keys = key(way.seed, text.prompt)[None]
    decoder = decode.of(model.params, model.model, way.sampling)
    end = model.tokenizer.end_of_text
    for _ in draw(decoder, [text], keys, window=CONTEXT, end_of_text=end):
        pass
    return {"text": text.text, "tokens": text.tokens, "finish_reason": text.finish_reason}


@pytest.mark.slow
def test_a_request_gets_what_its_prompt_gets_alone(model, file, tmp_path):
    first = alone(model, "red", WAY)
    stop = first["text"][3:4]
    path = file(
        {"prompt": "red"},
        "",
        {"prompt": "blue", "id": "b", "num_tokens": 3, "temperature": 2, "seed": 9},
        {"prompt": "red", "stop": stop},
    )
    asked = serving.read(path, model, WAY)
    output = tmp_path / "out.jsonl"
    serving.write(serving.serve(model, asked, 2, "depth"), len(asked), output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    answers = {line["id"]: line for line in lines}
    ways = {
        1: ("red", WAY),
        "b": ("blue", Way(3, 1, Sampling(2.0), Stops(), 9)),
        4: ("red", dataclasses.replace(WAY, stops=Stops((stop,)))),
    }
    assert answers.keys() == ways.keys()
    for name, (prompt, way) in ways.items():
        assert alone(model, prompt, way).items() <= answers[name].items()
        assert 1 <= answers[name]["mean_recursions"] <= model.model.schedule.num_recursions
    assert answers[4]["finish_reason"] == "stop"


WRONG = {
    "no JSON": ('{"prompt": "red"', "is not JSON"),
    "no object": (["red"], "is no request"),
    "no prompt": ({"text": "red"}, "is no request"),
    "another field": ({"prompt": "red", "tempreature": 1}, "no field 'tempreature'"),
    "a prompt that is no text": ({"prompt": 3}, "prompt: got 3, takes a text"),
    "an empty prompt": ({"prompt": ""}, "has 0 tokens, takes 1 to 24"),
    "a long prompt": ({"prompt": "red " * 9}, "has 36 tokens, takes 1 to 24"),
    "no tokens": ({"prompt": "red", "num_tokens": 0}, "num_tokens: got 0, takes 1 to"),
    "a true number": ({"prompt": "red", "num_tokens": True}, "num_tokens: got True"),
    "a negative temperature": ({"prompt": "red", "temperature": -1}, "temperature: got -1"),
    "no number": ('{"prompt": "red", "top_p": NaN}', "top_p: got nan, takes a number"),
    "an empty stop": ({"prompt": "red", "stop": [""]}, "stop: got ['']"),
    "a large seed": ({"prompt": "red", "seed": 2**40}, "seed: got 1099511627776, takes 0 to"),
}


@pytest.mark.parametrize(("line", "why"), WRONG.values(), ids=WRONG)
def test_a_line_that_is_no_request_is_named(model, file, line, why):
    path = file({"prompt": "blue"}, line)
    with pytest.raises(DataError) as caught:
        serving.read(path, model, WAY)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_a_request_is_refused(model, file, tmp_path):
    with pytest.raises(DataError, match="has no request"):
        serving.read(file(""), model, WAY)
    with pytest.raises(DataError, match="does not exist"):
        serving.read(tmp_path / "none.jsonl", model, WAY)


MIXED = {
    "an output there is": (["--requests={0}", "--output={0}"], "is there already"),
    "slots of prompts": (["--prompt=a", "--slots=2"], "--slots: is of --requests"),
    "a schedule of prompts": (["--prompt=a", "--schedule=depth"], "--schedule: is of --requests"),
    "samples of requests": (["--requests={0}", "--num_samples=2"], "--num_samples: is of --prompt"),
    "both": (["--requests={0}", "--prompt=a"], "not allowed with"),
}


@pytest.mark.parametrize(("typed", "why"), MIXED.values(), ids=MIXED)
def test_options_of_prompts_and_of_requests_do_not_mix(file, tmp_path, refused_command, typed, why):
    path = file({"prompt": "red"})
    typed = [word.format(path) for word in typed]
    refused_command("generate", f"--workdir={tmp_path}", *typed, parts=[why])
    assert path.read_text() == '{"prompt": "red"}\n'


def test_answers_replace_no_file(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("kept")
    with pytest.raises(ConfigError, match="is there already"):
        serving.write(iter([{"id": 1}]), 1, output)
    assert output.read_text() == "kept"


def test_a_model_that_slots_do_not_serve_is_named(file):
    other = trained(points.point(sharing="sequence"))
    asked = serving.read(file({"prompt": "red"}), other, WAY)
    with pytest.raises(ConfigError, match="--requests: sharing 'sequence'"):
        serving.serve(other, asked, 2, "depth")
