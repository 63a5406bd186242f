"""What may be typed: values in their ranges, options once or added, and help for all of it."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import pytest

from recursia import cli, parsing
from recursia.errors import ConfigError

PARSER = cli.parser()


def read(typed):
    return PARSER.parse_args(typed.split())


def parsers(parser=PARSER):
    """Yields the parser of every verb."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for inner in action.choices.values():
            yield from parsers(inner)


def test_every_option_has_help_with_its_default_and_every_number_a_range():
    for parser in parsers():
        shown = " ".join(parser.format_help().split())
        for action in parser._actions:
            assert action.help, (parser.prog, action.dest)
            if action.default not in (None, False, (), argparse.SUPPRESS, ""):
                assert f"(default: {action.default})" in shown, (parser.prog, action.dest)
            assert action.type not in (int, float, pathlib.Path), (parser.prog, action.dest)


def test_options_that_take_many_add():
    prepared = read("data prepare --input a b --output o --input c --validation d")
    assert (prepared.input, prepared.validation) == (("a", "b", "c"), ("d",))
    prepared = read("data prepare --input a --output=o --validation b --validation c d")
    assert prepared.validation == ("b", "c", "d")
    assert read("eval --workdir=w --depths=1,2 --depths=3").depths == (1, 2, 3)
    assert read("generate --workdir=w --prompt=a --prompt=b").prompt == ["a", "b"]
    assert read("budget --config=a --versus=b --versus=c,d").versus == ("b", "c", "d")
    assert read("parity a.npz a.npz").file == ["a.npz", "a.npz"]


GENERATE = "generate --workdir=w --prompt=a"
PREPARE = "data prepare --input a --output=b"
WRONG = [
    ("", "required: VERB"),
    ("trian", "invalid choice: 'trian'"),
    ("train", "required: --config"),
    ("train --workdir=x --config", "--config: expected one argument"),
    ("train --config=mor:tiny --workdir=x --steps=3", "unrecognized arguments: --steps=3"),
    ("train --conf=mor:tiny --workdir=x", "required: --config"),
    ("eval --workdir=x --depths=1,-2", "--depths: got '1,-2', takes numbers of recursions"),
    ("eval --workdir=x --depths=,", "--depths: got ','"),
    ("eval --workdir=x --num_batches=-1", "--num_batches: got '-1', takes a number from 0"),
    ("eval --workdir=x --step=last", "--step: got 'last', takes a number from 0"),
    ("eval --workdir=x --mode=train", "--mode: invalid choice"),
    ("compile --config=mor:tiny --tries=0", "--tries: got '0', takes a number from 1"),
    ("generate --workdir=x", "one of the arguments --prompt --requests is required"),
    ("budget --config=mor:tiny --match=x", "--match: invalid choice"),
    ("parity", "required: FILE.npz"),
    ("data", "required: prepare|inspect"),
    (f"{PREPARE} --validation_fraction=nan", "takes a number from 0"),
    (f"{PREPARE} --shard_tokens=0", "--shard_tokens: got '0', takes a number from 1"),
    *(
        (
            f"{GENERATE} --temperature={value}",
            f"--temperature: got '{value}', takes a number from 0",
        )
        for value in ("nan", "inf", "1e400", "-1", "warm")
    ),
    (f"{GENERATE} --num_tokens=1.5", "takes a number from 1"),
    (f"{GENERATE} --seed=2147483648", "takes a number from 0 to 2147483647"),
    ("generate --workdir=w --prompt=", "--prompt: is empty"),
    ("generate --prompt=a --workdir=", "--workdir: is empty"),
    ("generate --prompt=a --workdir=~nobody-of-that-name/x", "nobody's home"),
    ("train --config=a --workdir=w --config=b", "--config: given twice, as a and as b"),
    ("eval --workdir=w --step=1 --step=2", "--step: given twice, as 1 and as 2"),
    ("eval --workdir=w --mode=eval --mode=causal", "given twice, as eval and as causal"),
    (f"{PREPARE} --tokenizer=byte --tokenizer=bpe:300", "given twice, as byte and as bpe:300"),
]


@pytest.mark.parametrize(("typed", "part"), WRONG, ids=[typed for typed, _ in WRONG])
def test_wrong_usage_is_one_line(refused_command, typed, part):
    refused_command(*typed.split(), parts=[part, "--help"])


@pytest.mark.parametrize(
    "typed",
    [
        "--config.train.seed=1 --config.train.seed=2",
        "--config.block.seed=1 --config.model.block.seed 2",
    ],
)
def test_a_field_given_twice_is_refused_with_both_values(refused_command, typed):
    parts = ["given twice", "'1'", "'2'"]
    refused_command("train", "--config=a", *typed.split(), parts=parts)


def test_the_same_value_twice_is_no_contradiction():
    assert read("eval --workdir=w --step=1 --step=1 --json --json").step == 1
    twice = ["--config.block.kind=c", "--config.model.block.kind", "c", "a"]
    assert parsing.split(twice) == (["a"], {"block.kind": "c"})


def test_overrides_stand_anywhere_with_or_without_equals():
    expected = ["--config=m"], {"block.mlp_dim": "96", "train.seq_len": "64"}
    for typed in (
        "--config.block.mlp_dim=96 --config.train.seq_len=64 --config=m",
        "--config=m --config.block.mlp_dim 96 --config.train.seq_len 64",
        "--config.block.mlp_dim 96 --config=m --config.train.seq_len=64",
    ):
        assert parsing.split(typed.split()) == expected


def test_numbers_are_read_as_people_type_them():
    options = read(f"{GENERATE} --num_tokens=1e3 --temperature=.5 --seed=1_0")
    assert (options.num_tokens, options.temperature, options.seed) == (1000, 0.5, 10)


def test_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    options = read("eval --workdir=~/w --text=~/t")
    assert (options.workdir, options.text) == (pathlib.Path("/h/w"), "/h/t")
    prepared = read("data prepare --input ~/a --output=~/b --validation ~/c --tokenizer=~/d")
    assert (prepared.input, prepared.output) == (("/h/a",), "/h/b")
    assert (prepared.validation, prepared.tokenizer) == (("/h/c",), "/h/d")
    options = read("budget --config=~/a.py:x --versus=~/b.py,c")
    assert (options.config, options.versus) == ("/h/a.py:x", ("/h/b.py", "c"))


ODD = os.fsdecode(b"ab\xff")


@pytest.mark.parametrize(
    "typed",
    [
        ["generate", "--workdir=w", f"--prompt={ODD}"],
        ["generate", "--workdir=w", "--prompt", ODD],
        ["train", "--config=a", f"--config.eval.prompts={ODD}"],
        ["data", "prepare", "--output=o", "--input", ODD],
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_place(refused_command, typed):
    name = next(each for each in reversed(typed) if each.startswith("--")).partition("=")[0]
    refused_command(*typed, parts=[f"{name}: byte 3 (0xff) is not UTF-8"])


def test_text_in_a_locale_that_has_none_is_read_as_utf8():
    arrived = "é".encode().decode("ascii", "surrogateescape")
    assert parsing.split([f"--prompt={arrived}", arrived])[0] == ["--prompt=é", "é"]
    with pytest.raises(ConfigError, match="an argument: byte 1"):
        parsing.split(["\udcff"])


COMPLETE = """
import os, sys
from recursia import __main__

end = os._exit
os._exit = lambda code: (print("", "jax" in sys.modules, flush=True), end(code))
__main__.main()
"""


def completed(line):
    """Returns what the shell may complete a line to, and last whether jax was imported."""
    shell = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    shell |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " "}
    shell |= {"_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout"}
    command = [sys.executable, "-c", COMPLETE]
    done = subprocess.run(command, env={**os.environ, **shell}, capture_output=True, text=True)
    return done.stdout.split()


def test_a_shell_completes_verbs_options_configurations_and_presets():
    assert "train" in completed("recursia tr")
    assert "--workdir" in completed("recursia train --config=mor:tiny --config.a.b=3 --w")
    assert any("mor:" in each for each in completed("recursia train --config=m"))
    found = completed("recursia train --config=mor:ti")
    assert "tiny_token" in " ".join(found) and found[-1] == "False"


def test_presets_and_fields_say_what_there_is(command):
    every = json.loads(command("presets", "--json")[0])
    assert "mor:tiny" in every["mor"]["presets"] and every["mor"]["about"]
    assert "vanilla:360m" in command("presets", "vanilla")[0]
    shown, _ = command("fields", "mor:tiny", "train.num_steps", "--config.train.num_steps=7")
    assert shown.startswith("train.num_steps = 7\n") and "updates of the parameters" in shown
    found = json.loads(command("fields", "mor:tiny", "depth", "--json")[0])["fields"]
    assert all(f["meaning"] and f["type"] and "default" in f and "value" in f for f in found)


def test_versions_are_one_line(command):
    (line,) = command("--version")[0].splitlines()
    assert all(f"{name} " in line for name in ("recursia", "jax", "jaxlib", "Python"))
