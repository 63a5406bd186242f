"""`recursia generate`: what it prints, where a text ends, and what it refuses."""

import dataclasses
import json
import sys

import pytest

from recursia.data.vocabulary import ByteTokenizer
from recursia.generate import prompts
from recursia.generate.continuation import Stops
from recursia.generate.sampling import Sampling
from recursia.workdir import trained as runs
from tests.helpers.points import point
from tests.helpers.refusals import refused
from tests.helpers.runs import hashes, tiny_run
from tests.helpers.tiny import draw

TOKENIZER = ByteTokenizer()
PROMPTS = ["red blue", "one"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's directory with a model that was never trained, whose context is 16 tokens."""
    place = tmp_path_factory.mktemp("runs") / "run"
    run = tiny_run(place, "fixed")
    runs.save(run, 257, draw(run.model.sized(257)), TOKENIZER, place)
    return place


@pytest.fixture
def generate(workdir, command):
    """Runs the command; returns what it prints."""

    def run(*typed, asked=PROMPTS):
        given = [f"--workdir={workdir}", "--num_tokens=12", "--seed=3"]
        return command("generate", *given, *[f"--prompt={each}" for each in asked], *typed)[0]

    return run


def rows(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_a_prompt_gets_the_same_text_alone_or_beside_others(generate):
    """Of texts that fill the context at different tokens; and streamed or not."""
    both = rows(generate("--json"))
    alone = [row for prompt in PROMPTS[::-1] for row in rows(generate("--json", asked=[prompt]))]
    assert both == alone[::-1]
    assert [row["prompt"] for row in both] == PROMPTS
    assert both[0]["text"] != both[1]["text"]
    for row in both:
        assert row["finish_reason"] == "length" and len(row["tokens"]) == 12
        ids = TOKENIZER.encode(row["prompt"])
        assert row["text"] == TOKENIZER.continuation(ids, row["tokens"])
    printed = generate()
    assert printed == "".join(f"{row['prompt']}{row['text']}\n\n" for row in both)
    assert generate("--stream") == printed
    stop = both[0]["text"][7:9]
    cut = [row["text"].partition(stop)[0] for row in both]
    stopped = rows(generate("--json", f"--stop={stop}", "--stop=nowhere"))
    assert [row["text"] for row in stopped] == cut
    assert [row["finish_reason"] for row in stopped] == ["stop", "length"]
    assert len(stopped[0]["tokens"]) < 12
    expected = "".join(f"{prompt}{text}\n\n" for prompt, text in zip(PROMPTS, cut, strict=True))
    assert generate(f"--stop={stop}", "--stream") == generate(f"--stop={stop}") == expected
    more = rows(generate("--json", "--num_samples=2", asked=PROMPTS[:1]))
    assert more[0] == both[0] and more[1]["tokens"] != both[0]["tokens"]


def test_a_terminal_sees_tokens_as_they_are_drawn(generate, monkeypatch):
    whole = generate("--temperature=0")
    writes = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(prompts, "in_order", watched(prompts.in_order, writes))
    assert generate("--temperature=0") == whole
    assert len([new for _, new in writes if new]) > 2
    assert [at for at, _ in writes] == sorted(at for at, _ in writes)


def watched(function, seen):
    """Returns a generator function that also keeps what it yields."""

    def run(*given):
        for each in function(*given):
            seen.append(each)
            yield each

    return run


def test_another_depth_is_that_of_the_override(generate, workdir, refused_command):
    first, trained = generate("--depth=1", "--temperature=0"), generate("--temperature=0")
    assert first != trained == generate("--depth=2", "--temperature=0")
    asked = ("generate", f"--workdir={workdir}", "--prompt=a")
    refused_command(*asked, "--depth=0", parts=["--depth", "from 1"])


def test_a_depth_without_weights_is_refused(tmp_path, refused_command):
    run, place = tiny_run(tmp_path, "expert_choice"), tmp_path / "run"
    runs.save(run, 257, draw(run.model.sized(257)), TOKENIZER, place)
    asked = ("generate", f"--workdir={place}", "--prompt=a")
    refused_command(*asked, "--depth=9", parts=["--depth: depth 9", "take at most 2"])


LONG = "seventeen letters"
REFUSED = {
    "too long": ([f"--prompt={LONG}"], "--prompt: has 17 tokens, takes 1 to 16", "shorten it"),
    "one of several": (["--prompt=a", f"--prompt={LONG}"], "number 2 of 2 has 17 tokens"),
    "empty": (["--prompt="], "--prompt", "is empty"),
    "an empty stop": (["--prompt=a", "--stop="], "--stop", "is empty"),
    "two ways": (["--prompt=a", "--json", "--stream"], "--stream", "--json"),
}


@pytest.mark.parametrize(("typed", "parts"), [(t, p) for t, *p in REFUSED.values()], ids=REFUSED)
def test_what_cannot_be_continued_is_one_line(workdir, refused_command, typed, parts):
    before = hashes(workdir)
    refused_command("generate", f"--workdir={workdir}", *typed, parts=parts)
    assert hashes(workdir) == before


def whole_texts(workdir):
    """Returns a run whose model no KV cache serves."""
    config = point(depth_="recurrent", recursions=2).sized(257)
    depth = dataclasses.replace(config.depth, exit="kl", exit_threshold=0.01)
    config = dataclasses.replace(config, depth=depth)
    of = runs.load(workdir)
    return dataclasses.replace(of, model=config, params=draw(config))


def test_a_model_without_a_cache_stops_and_streams_alike(workdir):
    of = whole_texts(workdir)
    assert not of.model.is_incremental
    way = prompts.Way(12, 1, Sampling(0.0), Stops(), 0)

    def drawn(asked, way):
        texts = prompts.begin(of, asked, way)
        pieces = list(prompts.in_order(texts, prompts.drawn(of, texts, way)))
        joined = ["".join(new for at, new in pieces if at == index) for index in range(len(asked))]
        assert joined == [text.text for text in texts]
        return joined

    whole = drawn(PROMPTS, way)
    assert whole == [drawn([prompt], way)[0] for prompt in PROMPTS]
    stop = whole[0][3:5]
    cut = dataclasses.replace(way, stops=Stops((stop,)))
    assert drawn(PROMPTS, cut) == [text.partition(stop)[0] for text in whole]
    with refused(ValueError, "has 17 tokens"):
        prompts.begin(of, [LONG], way)
