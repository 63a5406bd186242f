"""The command line: one line for a mistake, its exit code, no traceback."""

import asyncio
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import tensorstore

from recursia import cli, parsing, verbs
from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import prose, values, write_config, write_text

VERBS = ("train", "eval", "generate", "budget", "parity", "data", "data prepare", "data inspect")
VERBS += ("ckpt", "ckpt ls", "ckpt verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, its text, and an empty folder and a broken file of lines."""
    folder = tmp_path_factory.mktemp("cli")
    write_text(folder)
    write_config(folder / "tiny.py", values(folder))
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_has_help(command, verb):
    out, err = command(*verb.split(), "--help")
    assert err == "" and out.startswith(f"usage: recursia {verb}".strip())


VALUES = {"config": "mor:tiny", "workdir": "runs/a b", "prompt": "red", "output": "out"}
VALUES |= {"input": "in", "file": "x.npz", "directory": "data", "target": "local", "step": "3"}


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_the_command_that_a_verb_names_as_the_next_can_be_typed(verb):
    root, of_verb = cli.parser(), parsing.Parser()
    verbs.VERBS[verb].options(of_verb)
    wanted = [a for a in of_verb._actions if a.required or a.dest == "prompt"]
    values = [(action.option_strings, VALUES[action.dest]) for action in wanted]
    typed = [f"{names[0]}={value}" if names else value for names, value in values]
    given = root.parse_args([*verb.split(), *typed])
    given.overrides = {"optimizer.learning_rate": "1e-3"}
    program, *words = shlex.split(given.following(given))
    rest, _ = parsing.split(words)
    assert program == "recursia" and root.parse_args(rest)


def test_a_command_ends_by_naming_the_next_but_not_where_programs_read_it(command):
    out, err = command("fields", "mor:tiny", "log")
    assert err == "next: recursia train --config=mor:tiny --workdir=runs/NAME\n" and out
    assert command("fields", "mor:tiny", "log", "--json")[1] == ""


def test_a_mistake_ends_the_program_with_its_code():
    arguments = ["train", "--config=mr:tiny", "--workdir=none"]
    done = subprocess.run(
        [sys.executable, "-m", "recursia", *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "no file mr.py", "did you mean 'mor'?")
    assert not os.path.exists("none")


# What is typed after the configuration, the exit code and parts of the answer. What else is wrong
# with a configuration or with data: test_config.py and the tests of data.
WRONG = {
    "an unknown field": ("train.num_stps=3", 2, "did you mean 'num_steps'?"),
    "no checkpoint to keep": ("checkpoint.keep=0", 2, "keep", "at least 1"),
    "fewer than none": ("checkpoint.keep_best=-1", 2, "keep_best"),
    "no value": ("train.num_steps", 2, "train.num_steps: got ''"),
    "a batch that does not divide": ("train.batch_size=6", 2, "train.batch_size", "over 8"),
    "microbatches too small": ("train.num_microbatches=2", 2, "batch_size: 4", "mesh"),
    "microbatches that do not divide": ("train.num_microbatches=3", 2, "num_microbatches"),
    "a mesh of other devices": ("mesh.data=3", 2, "config.mesh", "let one of them be -1"),
    "a width that does not divide": (
        "mesh.data=1 mesh.fsdp=8 block.embed_dim=12",
        2,
        "is 12 wide, which 8 devices do not divide",
    ),
    "no such folder": ("data.path={0}/none", 3, "/none: no such folder", "data prepare"),
    "a folder of something else": ("data.path={0}", 3, "no prepared data"),
    "a broken line": ("data.text={0}/broken.jsonl", 3, "broken.jsonl:2: bad JSON", "skip"),
    "too little text": ("train.seq_len=100000", 3, "lower seq_len or prepare more text"),
    "a vocabulary below the tokenizer's": (
        "model.vocab_size=100",
        3,
        "config.model.vocab_size: the model has 100 tokens, the data's tokenizer 257; raise it",
    ),
}


@pytest.mark.parametrize(
    ("typed", "code", "parts"), [(t, c, p) for t, c, *p in WRONG.values()], ids=WRONG
)
def test_what_cannot_be_trained_is_one_line(folder, tmp_path, refused_command, typed, code, parts):
    overrides = [f"--config.{each}" for each in typed.format(folder).split(" ")]
    base = [f"--config={folder / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    refused_command("train", *base, *overrides, parts=parts, code=code)
    assert not (tmp_path / "run" / "config.json").exists()  # no run was begun


@pytest.mark.parametrize("name", ["train.txt", "train.txt/run"])
def test_a_workdir_that_cannot_be_written_is_one_line(folder, command, name):
    workdir = f"--workdir={folder / name}"
    _, err = command("train", f"--config={folder / 'tiny.py'}", workdir, code=2)
    assert_one_line(err, f"{workdir}: cannot be written")


@pytest.mark.parametrize("verb", ["sweep status", "eval", "ckpt ls"])
def test_a_folder_of_others_is_one_line(verb, tmp_path, command, monkeypatch):
    theirs, real = tmp_path / "theirs", pathlib.Path.stat

    def stat(self, **how):
        if self.is_relative_to(theirs):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **how)

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    _, err = command(*verb.split(), f"--workdir={theirs}", code=6)
    assert_one_line(err, theirs, "Permission denied; give a place that is yours")


@pytest.mark.parametrize("verb", [("eval",), ("generate", "--prompt=a")])
def test_a_directory_that_is_no_run_is_one_line(folder, tmp_path, refused_command, verb):
    looked_for = ("neither a run (config.json, checkpoints)", "(config.json with model_type,")
    refused_command(*verb, f"--workdir={folder / 'empty'}", parts=(folder / "empty", *looked_for))
    refused_command(*verb, f"--workdir={tmp_path / 'none'}", parts=(tmp_path, "is not there"))
    assert not (tmp_path / "none").exists()
    (tmp_path / "config.json").write_text('{"a": 1}')
    refused_command(*verb, f"--workdir={tmp_path}", parts=(tmp_path, *looked_for))
    (tmp_path / "config.json").write_text("{")
    refused_command(*verb, f"--workdir={tmp_path}", parts=["config.json: cannot be read"])
    refused_command(*verb, f"--workdir={folder / 'train.txt'}", parts=["train.txt"], code=5)


PREPARE = "data prepare --output={0}/new --input"
OTHERS = [
    ("train --config=mor:tiny", 2, "train: give --workdir=DIR"),
    ("parity none.npz --config.a=3", 2, "parity: takes no --config; remove it"),
    ("data inspect {0}/empty", 3, "no prepared data"),
    (f"{PREPARE} {{0}}/broken.jsonl", 3, "broken.jsonl:2"),
    (f"{PREPARE} {{0}}/train.txt --tokenizer=bpe:9", 2, "257 or more"),
    ("budget --config=mor:tiny --versus=mr:tiny", 2, "did you mean 'mor'?"),
    ("budget --config=mor:tiny --versus=mor:tiny", 2, "a name stands twice"),
]


@pytest.mark.parametrize(("typed", "code", "part"), OTHERS, ids=[typed for typed, *_ in OTHERS])
def test_mistakes_of_other_verbs_are_one_line(folder, command, typed, code, part):
    _, err = command(*typed.format(folder).split(), code=code)
    assert_one_line(err, part)
    assert not (folder / "new").exists()


def test_a_dry_run_shows_what_is_typed_and_writes_nothing(command, tmp_path):
    dry = ("train", "--config=mor:tiny", "--dry_run", f"--workdir={tmp_path / 'none'}")
    plain, short, full = (
        command(*dry, *typed)
        for typed in ((), ("--config.block.mlp_dim", 96), ("--config.model.block.mlp_dim=96",))
    )
    assert short[0] == full[0] != plain[0]
    assert short[1].startswith("next: ") and len(short[1].splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_data_is_prepared_and_looked_at(folder, tmp_path, command):
    output = tmp_path / "data"
    inputs = ("--input", folder / "train.txt", "--validation", folder / "validation.txt")
    out, _ = command("data", "prepare", *inputs, f"--output={output}", "--tokenizer=byte")
    assert set(json.loads(out)) == {"train", "validation"}
    out, _ = command("data", "inspect", output)
    assert json.loads(out)["splits"]["train"]["tokens"] == len(prose(0, 800)) + 1


def test_arrays_that_come_after_a_failed_save_are_not_heard(capfd):
    assert cli.main(["ckpt", "ls", "--workdir=nowhere"]) == 5
    capfd.readouterr()
    promise, array = tensorstore.Promise.new()
    loop = asyncio.new_event_loop()

    async def comes():
        await array

    async def failed():
        task = asyncio.ensure_future(comes())
        await asyncio.sleep(0)
        task._log_destroy_pending = False  # of this test alone
        return task

    task = loop.run_until_complete(failed())
    loop.close()
    promise.set_exception(OSError("no space"))
    assert capfd.readouterr().err == "" and not task.done()
