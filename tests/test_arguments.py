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


def read(*typed):
    return PARSER.parse_args(list(typed))


def refused(capsys, *typed):
    """Returns the last line of a refusal."""
    capsys.readouterr()
    assert cli.main(list(typed)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err.splitlines()[-1]


def commands(parser=PARSER):
    """Yields the parser of every verb."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for inner in action.choices.values():
            yield from commands(inner)


def test_every_option_has_help_that_says_its_default():
    for command in commands():
        shown = " ".join(command.format_help().split())
        for action in command._actions:
            assert action.help, (command.prog, action.dest)
            if action.default not in (None, False, (), argparse.SUPPRESS, ""):
                assert f"(default: {action.default})" in shown, (command.prog, action.dest)


def test_every_number_that_is_typed_has_a_range():
    for command in commands():
        for action in command._actions:
            assert action.type not in (int, float, pathlib.Path), (command.prog, action.dest)


def test_options_that_take_many_add():
    prepared = read(*"data prepare --input a b --output o --input c --validation d".split())
    assert (prepared.input, prepared.validation) == (("a", "b", "c"), ("d",))
    prepared = read(*"data prepare --input a --output=o --validation b --validation c d".split())
    assert prepared.validation == ("b", "c", "d")
    assert read(*"eval --workdir=w --depths=1,2 --depths=3".split()).depths == (1, 2, 3)
    assert read(*"generate --workdir=w --prompt=a --prompt=b".split()).prompt == ["a", "b"]
    assert read(*"budget --config=a --versus=b --versus=c,d".split()).versus == ("b", "c", "d")
    assert read(*"parity a.npz a.npz".split()).file == ["a.npz", "a.npz"]


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("train --config=a --workdir=w --config=b", ("--config", "a", "b")),
        ("train --config=a --workdir=w --workdir=v", ("--workdir", "w", "v")),
        ("eval --workdir=w --step=1 --step=2", ("--step", "1", "2")),
        ("eval --workdir=w --mode=eval --mode=causal", ("--mode", "eval", "causal")),
        ("generate --workdir=w --prompt=a --seed=1 --seed 2", ("--seed", "1", "2")),
        ("data prepare --input a --output=o --tokenizer=byte --tokenizer=bpe:300", ("byte", "bpe")),
        ("train --config=a --config.train.seed=1 --config.train.seed=2", ("'1'", "'2'")),
        ("train --config=a --config.block.kind=b --config.model.block.kind c", ("'b'", "'c'")),
    ],
)
def test_an_option_of_one_value_given_twice_is_refused_with_both(capsys, typed, parts):
    said = refused(capsys, *typed.split())
    assert "given twice, as " in said and all(part in said for part in parts), said


def test_the_same_value_twice_is_no_contradiction():
    assert read(*"eval --workdir=w --step=1 --step=1 --json --json".split()).step == 1
    typed = ["--config.train.seed=1", "--config.train.seed", "1", "a"]
    assert parsing.split(typed) == (["a"], {"train.seed": "1"})


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--temperature=nan", "takes a number from 0"),
        ("--temperature=inf", "takes a number from 0"),
        ("--temperature=1e400", "takes a number from 0"),
        ("--temperature=-1", "takes a number from 0"),
        ("--temperature=warm", "takes a number from 0"),
        ("--num_tokens=0", "takes a number from 1"),
        ("--num_tokens=1.5", "takes a number from 1"),
        ("--seed=-1", "takes a number from 0 to 2147483647"),
        ("--seed=2147483648", "takes a number from 0 to 2147483647"),
        ("--step=-1", "takes a number from 0"),
        ("--prompt=", "--prompt: is empty"),
        ("--workdir=", "--workdir: is empty"),
        ("--workdir=~nobody-of-that-name/x", "nobody's home"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(capsys, typed, said):
    rest = [each for each in ("--workdir=w", "--prompt=a") if each[:4] != typed[:4]]
    assert said in refused(capsys, "generate", *rest, typed)


@pytest.mark.parametrize(
    "typed",
    [
        "eval --workdir=w --depths=0",
        "eval --workdir=w --depths=,",
        "eval --workdir=w --num_processes=0",
        "eval --workdir=w --process_id=-1",
        "compile --config=a --tries=0",
        "data prepare --input a --output=b --validation_fraction=nan",
        "data prepare --input a --output=b --shard_tokens=0",
    ],
)
def test_numbers_of_other_verbs_have_ranges_too(capsys, typed):
    assert ", takes " in refused(capsys, *typed.split())


def test_numbers_are_read_as_people_type_them():
    typed = "generate --workdir=w --prompt=a --num_tokens=1e3 --temperature=.5 --seed=1_0".split()
    options = read(*typed)
    assert (options.num_tokens, options.temperature, options.seed) == (1000, 0.5, 10)


def test_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert read("eval", "--workdir=~/w", "--text=~/t").workdir == pathlib.Path("/h/w")
    assert read("eval", "--workdir=w", "--text=~/t").text == "/h/t"
    typed = "data prepare --input ~/a --output=~/b --validation ~/c --tokenizer=~/d".split()
    prepared = read(*typed)
    assert (prepared.input, prepared.output) == (("/h/a",), "/h/b")
    assert (prepared.validation, prepared.tokenizer) == (("/h/c",), "/h/d")
    assert read("budget", "--config=~/a.py:x", "--versus=~/b.py,c").config == "/h/a.py:x"
    assert read("budget", "--config=a", "--versus=~/b.py,c").versus == ("/h/b.py", "c")


ODD = os.fsdecode(b"ab\xff")


@pytest.mark.parametrize(
    "typed",
    [
        ["generate", "--workdir=w", f"--prompt={ODD}"],
        ["generate", "--workdir=w", "--prompt", ODD],
        ["train", "--config=a", f"--config.eval.prompts={ODD}"],
        ["train", "--config=a", "--config.eval.prompts", ODD],
        ["eval", f"--workdir={ODD}"],
        ["data", "prepare", "--output=o", "--input", ODD],
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_place(capsys, typed):
    said = refused(capsys, *typed)
    name = next(each for each in reversed(typed) if each.startswith("--")).partition("=")[0]
    assert said == f"recursia: {name}: byte 3 (0xff) is not UTF-8"


def test_text_in_a_locale_that_has_none_is_read_as_utf8():
    arrived = "é".encode().decode("ascii", "surrogateescape")
    assert parsing.split([f"--prompt={arrived}", arrived])[0] == ["--prompt=é", "é"]
    with pytest.raises(ConfigError, match="an argument: byte 1"):
        parsing.split(["\udcff"])


def completed(line):
    """Returns what the shell is told to complete a line to."""
    env = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    env |= {
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": " ",
    }
    script = "import sys; from recursia import __main__\n"
    script += "import os, atexit; end = os._exit\n"
    script += "os._exit = lambda code: (print('', 'jax' in sys.modules, flush=True), end(code))\n"
    script += "__main__.main()"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.stdout.split()


def test_a_shell_completes_verbs_options_configurations_and_presets():
    assert "train" in completed("recursia tr")
    assert "--workdir" in completed("recursia train --config=mor:tiny --config.a.b=3 --w")
    assert any("mor:" in each for each in completed("recursia train --config=m"))
    found = completed("recursia train --config=mor:ti")
    assert "tiny_token" in " ".join(found) and found[-1] == "False"  # jax was not imported


def test_presets_and_fields_say_what_there_is(capsys):
    assert cli.main(["presets", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert "mor:tiny" in every["mor"]["presets"] and every["mor"]["about"]
    assert cli.main(["presets", "vanilla"]) == 0
    assert "vanilla:360m" in capsys.readouterr().out
    assert cli.main(["fields", "mor:tiny", "train.num_steps", "--config.train.num_steps=7"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("train.num_steps = 7\n") and "updates of the parameters" in shown
    assert cli.main(["fields", "mor:tiny", "depth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["fields"]
    assert all(f["meaning"] and f["type"] and "default" in f and "value" in f for f in found)


def test_versions_are_one_line(capsys):
    assert cli.main(["--version"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert all(f"{name} " in line for name in ("recursia", "jax", "jaxlib", "Python"))
